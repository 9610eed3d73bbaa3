"""`hiera-video label-dataset` from a checkout: label or describe a data set on Ray."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # nothing need be installed

from hiera_video import cli
from hiera_video.commands import label_dataset

main = partial(label_dataset.main, prog="python tools/label_dataset.py")

if __name__ == "__main__":
    cli.run(main)
