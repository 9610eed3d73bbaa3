"""`hiera-video features` from a checkout: describe videos by vectors of a frozen model."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # nothing need be installed

from hiera_video import cli
from hiera_video.commands import features

main = partial(features.main, prog="python tools/extract_features.py")

if __name__ == "__main__":
    cli.run(main)
