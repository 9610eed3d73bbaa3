"""How functions of this package are compiled: by numba, at their first call."""

from __future__ import annotations

from collections.abc import Callable

from numba import njit


def compiled(function: Callable) -> Callable:
    """Compile a function at its first call; the result is kept for other processes where it can be
    written, which a read-only installation may not allow."""
    try:
        made: Callable = njit(cache=True, nogil=True)(function)
    except RuntimeError:
        made = njit(nogil=True)(function)
    return made


def inlined(function: Callable) -> Callable:
    """Compile a function as a part of each that calls it.

    For what is called in one place, or is small: otherwise it is compiled twice, by itself and
    with its caller, whose code it is joined to.
    """
    made: Callable = njit(inline="always")(function)
    return made
