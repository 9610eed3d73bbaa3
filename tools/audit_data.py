"""`hiera-video audit` from a checkout: open and decode every video of a data set."""

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # nothing need be installed

from hiera_video import cli
from hiera_video.commands import audit

main = partial(audit.main, prog="python tools/audit_data.py")

if __name__ == "__main__":
    cli.run(main)
