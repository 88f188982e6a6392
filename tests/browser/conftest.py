"""One browser for the tests of a file, and the four ways to look at a page."""

import pytest
from chromium import VIEWS, browsing


@pytest.fixture(scope="module")
def browser():
    with browsing() as driver:
        yield driver


@pytest.fixture(params=VIEWS, ids=lambda view: f"{view[0]}-{view[1]}")
def view(request):
    """(width in pixels, colour scheme)."""
    return request.param
