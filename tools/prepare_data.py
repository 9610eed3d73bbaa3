"""`hiera-video prepare` from a checkout: make lists for training."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # nothing need be installed

from hiera_video import cli
from hiera_video.commands import prepare

main = partial(prepare.main, prog="python tools/prepare_data.py")

if __name__ == "__main__":
    cli.run(main)
