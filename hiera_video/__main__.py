"""`python -m hiera_video doctor`: check whether this machine is ready, and what to install.

Exit codes: 0 everything required works; 1 something required does not; 2 wrong use.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m hiera_video",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command",
        choices=["doctor"],
        help="doctor: try versions, decoders, GPU, a forward, folders and weights",
    )
    parser.parse_args(argv)
    from hiera_video import doctor

    return doctor.main()


if __name__ == "__main__":
    # Not `cli.run`, which imports packages that the doctor may have to report as missing.
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        sys.exit(130)
