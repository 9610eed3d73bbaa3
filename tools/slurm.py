"""`hiera-video slurm` from a checkout: submit a training run to Slurm."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # nothing need be installed

from hiera_video import cli
from hiera_video.commands import slurm

main = partial(slurm.main, prog="python tools/slurm.py")

if __name__ == "__main__":
    cli.run(main)
