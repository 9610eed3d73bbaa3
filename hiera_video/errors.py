"""The two kinds of failure a command line tells apart.

Exit codes: 0 done; 1 the run failed (`RunFailed`, `DecodeError`); 2 wrong use (`UserError`).
"""


class UserError(ValueError):
    """Wrong use: the message says what came, what is allowed and what to do next."""


class RunFailed(RuntimeError):
    """The command was right and the work failed; the message says what is left on disk."""


def first_few(names: list[str], count: int = 10) -> str:
    """The first few names of a list, for a message, and how many more there are."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")
