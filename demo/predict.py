#!/usr/bin/env python
"""`hiera-video predict` from a checkout: label videos.

python demo/predict.py clip.mp4
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # nothing need be installed

from hiera_video import cli
from hiera_video.commands import predict

main = partial(predict.main, prog="python demo/predict.py")

if __name__ == "__main__":
    cli.run(main)
