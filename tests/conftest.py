"""Fixtures shared by all tests."""

import signal
from pathlib import Path

import pytest
import torch

from hiera_video.engine import plots

pytest_plugins = ["browser", "page_folder", "storage_servers"]

REPOSITORY = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Ctrl-C works in the tests, and in the processes they start, where it is ignored outside: a
    shell starts jobs in the background like that, and continuous integration may be one."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST_FIRST = ("test_readme", "test_docs", "test_export", "test_demo", "test_survival")
"""Files of few tests that take minutes: at the end one process would run them and the other wait.
Used with pytest-xdist's --no-loadscope-reorder."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first; tests marked `gpu` skip where there is no card."""
    places = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the checkout under test."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real and hostile clips beside the checkout; tests skip where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return folder


@pytest.fixture(scope="module")
def no_curves():
    """For modules with many runs: drawing takes longer than a run does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "draw_curves", lambda folder: None)
        yield
