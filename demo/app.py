#!/usr/bin/env python
"""`hiera-video app` from a checkout: label videos in a browser.

python demo/app.py
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # nothing need be installed

from hiera_video import cli
from hiera_video.commands import app

main = partial(app.main, prog="python demo/app.py")

if __name__ == "__main__":
    cli.run(main)
