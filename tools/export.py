"""`hiera-video export` from a checkout: a trained model as a file for another runtime."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # nothing need be installed

from hiera_video import cli
from hiera_video.commands import export

main = partial(export.main, prog="python tools/export.py")

if __name__ == "__main__":
    cli.run(main)
