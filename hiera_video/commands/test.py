"""Test a trained model with several views: what `train` does after training, by itself.

    hiera-video test --cfg K400/hiera_b_16x4 DATA.PATH_TO_DATA_DIR kinetics/ \\
        TEST.CHECKPOINT_FILE_PATH hiera_base_16x224.mae_k400_ft_k400
    hiera-video test --cfg runs/mine/config.yaml

The same as `hiera-video train ... TRAIN.ENABLE False`; exit codes are those of `train`.
"""

from __future__ import annotations

from collections.abc import Sequence

from hiera_video.commands import train, usage


def main(argv: Sequence[str] | None = None, prog: str = "hiera-video test") -> int:
    """Run one command line; returns the exit code."""
    description = usage(__doc__, "test", prog)
    return train.command(argv, prog, description, always=("TRAIN.ENABLE", "False"))
