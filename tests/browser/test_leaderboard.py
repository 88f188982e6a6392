"""The page of the leaderboard in a real browser; skipped where there is none."""

import pytest
from chromium import DARK, check_keyboard, needs_browser, show
from test_report_leaderboard import example

from jaxplain.report.leaderboard import render_leaderboard

pytestmark = needs_browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("board") / "leaderboard.html"
    path.write_text(render_leaderboard(example()), encoding="utf-8")
    return path


def test_the_page_fits_asks_for_nothing_and_can_be_used_by_keyboard(browser, page, view):
    width, scheme = view
    show(browser, page, width=width, scheme=scheme)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (colour == DARK) == (scheme == "dark")
    check_keyboard(browser)


def test_a_head_sorts_the_better_first(browser, page):
    show(browser, page, width=1280, scheme="light")
    script = """
        const heads = document.querySelectorAll(".board thead button");
        heads[arguments[0]].click();
        return [...document.querySelectorAll(".board tbody tr")].map(
            row => Number(row.cells[arguments[0]].dataset.value));
    """
    area = browser.execute_script(script, 1)
    assert area == sorted(area, reverse=True)
    errors = browser.execute_script(script, 5)
    assert errors == sorted(errors)
