"""`hiera-video search` from a checkout: find similar videos among described ones."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # nothing need be installed

from hiera_video import cli
from hiera_video.commands import search

main = partial(search.main, prog="python tools/search.py")

if __name__ == "__main__":
    cli.run(main)
