#!/usr/bin/env python
"""`hiera-video detect` from a checkout: label the people of videos.

python demo/detect.py clip.mp4 --weights W
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # nothing need be installed

from hiera_video import cli
from hiera_video.commands import detect

main = partial(detect.main, prog="python demo/detect.py")

if __name__ == "__main__":
    cli.run(main)
