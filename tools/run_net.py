"""`hiera-video train` from a checkout: train and test.

python tools/run_net.py --cfg configs/K400/hiera_b_16x4.yaml
torchrun --nproc-per-node 8 tools/run_net.py --cfg configs/K400/hiera_b_16x4.yaml
"""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # nothing need be installed

from hiera_video import cli
from hiera_video.commands import train

main = partial(train.main, prog="python tools/run_net.py")

if __name__ == "__main__":
    cli.run(main)
