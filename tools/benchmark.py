"""`hiera-video benchmark` from a checkout: what is measured is in `hiera_video/benchmarks/`."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # nothing need be installed

from hiera_video import cli
from hiera_video.commands import benchmark

main = partial(benchmark.main, prog="python tools/benchmark.py")

if __name__ == "__main__":
    cli.run(main)
