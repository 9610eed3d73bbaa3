"""Where the tests of pages write, and what reads the videos there: fixtures."""

from __future__ import annotations

import pytest

from hiera_video.video.guarded_pool import GuardedPool


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The current folder, for all tests: the process reads files where it was started."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("page")
        patch.chdir(folder)
        yield folder


@pytest.fixture(scope="module")
def process(here):
    """Reads videos, and does worse where a test asks for it."""
    from test_guarded_video import serve_or_worse  # itself a file of tests, read when it is wanted

    with GuardedPool(serve_or_worse) as pool:
        yield pool
