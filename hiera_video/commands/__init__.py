"""The command lines: a module each, with `main(argv, prog)`.

`hiera-video NAME ...` and `python -m hiera_video NAME ...` run them, and so do the scripts of a
checkout, under their own names (`demo/predict.py`, `tools/run_net.py`, ...): there is one code.
"""

from __future__ import annotations

from typing import NamedTuple


class Command(NamedTuple):
    """One command of `hiera-video`."""

    module: str
    """In this package."""
    what: str
    """For the overview."""


COMMANDS = {
    "predict": Command("predict", "label video files"),
    "detect": Command("detect", "label the people of videos, second by second"),
    "app": Command("app", "label videos in a browser"),
    "train": Command("train", "pretrain or fine-tune by a recipe or a config file, then test"),
    "slurm": Command("slurm", "submit a training run to Slurm, which goes on when it is stopped"),
    "test": Command("test", "test a trained model with several views"),
    "audit": Command("audit", "open and decode every video of a data set, and list what is wrong"),
    "prepare": Command("prepare", "make lists for training from a folder or a public set's lists"),
    "features": Command("features", "describe videos by vectors of a frozen model"),
    "search": Command("search", "find similar videos by their vectors, or probe for classes"),
    "evaluate-detections": Command(
        "evaluate_detections", "measure boxes and actions against annotated ones (AVA)"
    ),
    "export": Command("export", "write a trained model as ONNX, OpenVINO or a program of PyTorch"),
    "benchmark": Command("benchmark", "measure models, loading and labelling, with the conditions"),
    "label-dataset": Command("label_dataset", "label a data set with many processes, on Ray"),
    "models": Command("models", "list models: input, parameters, multiply-adds, weights, licence"),
}
"""Name -> command. `doctor` is none of them: it must run where imports fail."""


def usage(text: str, name: str, prog: str) -> str:
    """Return a module's description with the examples as they are typed.

    text: its examples are written `hiera-video NAME ...`. prog: how it was started, such as
    "hiera-video audit", "python -m hiera_video audit" or "python tools/audit_data.py".
    """
    if not prog.endswith(".py"):
        return text.replace("hiera-video ", prog.rpartition(" ")[0] + " ")
    text = text.replace(f"-m hiera_video {name}", prog.removeprefix("python "))
    return text.replace(f"hiera-video {name}", prog)
