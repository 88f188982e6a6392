"""The report that `make demo` wrote, as a stranger meets it; JAXPLAIN_REPORT names the file."""

import os
from pathlib import Path

import pytest
from chromium import check_keyboard, check_whole, needs_browser, show

from jaxplain.methods import METHODS

REPORT = os.environ.get("JAXPLAIN_REPORT")
LARGEST = 10_000_000

pytestmark = pytest.mark.skipif(not REPORT, reason="JAXPLAIN_REPORT names no report")

MAPPED = """
    return [...document.querySelectorAll("section.network")].map(section => ({
        name: section.querySelector("h2").textContent,
        maps: [...new Set([...section.querySelectorAll("[data-method]")]
            .map(e => e.dataset.method))],
        skipped: [...section.querySelectorAll(".skipped dt")].map(e => e.textContent),
    }));
"""
TOLD = "return [...document.querySelectorAll('#methods code')].map(e => e.textContent)"


@pytest.fixture(scope="module")
def page():
    return Path(REPORT).resolve(strict=True)


def test_it_is_small_enough_to_send(page):
    assert page.stat().st_size <= LARGEST


@needs_browser
def test_every_method_is_there_or_says_why_not(browser, page):
    show(browser, page, width=1280, scheme="light")
    sections = browser.execute_script(MAPPED)
    assert sections
    for section in sections:
        refused = {name for name, method in METHODS.items() if method.title in section["skipped"]}
        assert set(section["maps"]) == set(METHODS) - refused, section["name"]
        if section["name"].startswith("Flowers"):
            assert refused == {name for name, method in METHODS.items() if method.costly}
    affordable = {name for name, method in METHODS.items() if not method.costly}
    assert set(browser.execute_script(TOLD)) == affordable


@needs_browser
def test_it_loads_whole_and_asks_the_network_for_nothing(browser, page, view):
    width, scheme = view
    show(browser, page, width=width, scheme=scheme)
    check_whole(browser, page, width=width, scheme=scheme)


@needs_browser
def test_tab_reaches_every_control_and_shows_where_it_is(browser, page, view):
    width, scheme = view
    show(browser, page, width=width, scheme=scheme)
    check_keyboard(browser)
