"""The two kinds of failure a command line tells apart.

Exit codes: 0 done; 1 the run failed (`RunFailed`, `DecodeError`); 2 wrong use (`UserError`).
"""


class UserError(ValueError):
    """Wrong use: the message says what came, what is allowed and what to do next."""


class RunFailed(RuntimeError):
    """The command was right and the work failed; the message says what is left on disk."""
