"""`hiera-video evaluate-detections` from a checkout: frame mAP of boxes and actions (AVA)."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # nothing need be installed

from hiera_video import cli
from hiera_video.commands import evaluate_detections

main = partial(evaluate_detections.main, prog="python tools/evaluate_detections.py")

if __name__ == "__main__":
    cli.run(main)
