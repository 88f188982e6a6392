"""The page in a real browser; skipped where there is none."""

import pytest
from chromium import check_keyboard, check_whole, missing_pictures, needs_browser, show
from report_examples import PAYLOADS, example

from jaxplain.report import write_report

pytestmark = needs_browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report whose names all try to run something."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    report = example(names=[f"{PAYLOADS[n]}{n}" for n in range(3)], picture=PAYLOADS[1])
    return write_report(path, report)


def test_the_page_loads_whole_and_asks_the_network_for_nothing(browser, page, view):
    width, scheme = view
    show(browser, page, width=width, scheme=scheme)
    check_whole(browser, page, width=width, scheme=scheme)
    assert browser.title != "stolen"


def test_tab_reaches_every_control_and_shows_where_it_is(browser, page, view):
    width, scheme = view
    show(browser, page, width=width, scheme=scheme)
    check_keyboard(browser)


@pytest.mark.parametrize("name", ["picture", "outline"])
@pytest.mark.parametrize("value", ["none", "url(data:image/png;base64,AAAA)"])
def test_a_picture_that_a_style_fails_to_paint_is_noticed(browser, page, name, value):
    show(browser, page, width=1280, scheme="light")
    assert missing_pictures(browser) == []
    browser.execute_script(
        "document.querySelector('.case').style.setProperty(arguments[0], arguments[1])",
        f"--{name}",
        value,
    )
    pseudo = {"picture": "::before", "outline": "::after"}[name]
    assert {text[-len(pseudo) :] for text in missing_pictures(browser)} == {pseudo}


def test_the_controls_do_what_they_say(browser, page):
    show(browser, page, width=1280, scheme="light")

    def press(text):
        browser.execute_script(
            "[...document.querySelectorAll('.tools button')]"
            ".find(b => b.textContent == arguments[0]).click()",
            text,
        )

    def style(selector, name, pseudo=""):
        script = (
            "const [selector, name, pseudo] = arguments;"
            "return getComputedStyle(document.querySelector(selector), pseudo)[name]"
        )
        return browser.execute_script(script, selector, name, pseudo)

    assert style(".map .stack", "filter", "::before").startswith("grayscale(1)")
    press("Picture")
    assert style(".map .stack", "filter", "::before") == "none"
    press("Nothing")
    assert style(".map .stack", "content", "::before") == "none"
    press("Outline")
    assert style(".map .stack", "content", "::after") == "none"
    press("Dark")
    assert style("body", "backgroundColor") == "rgb(22, 21, 18)"
    browser.execute_script(
        "const s = document.getElementById('strength');"
        "s.value = 30; s.dispatchEvent(new Event('input'))"
    )
    assert style(".map .stack img", "opacity") == "0.3"
    assert browser.get_log("browser") == []


def test_tables_sort_by_their_heads(browser, page):
    show(browser, page, width=1280, scheme="light")
    first = "return document.querySelector('table.scores tbody th').textContent"
    head = "document.querySelector('table.scores thead button').click()"
    names = []
    for _ in range(2):
        browser.execute_script(head)
        names.append(browser.execute_script(first))
    assert names == ["Gradient", "Noise"]
    assert (
        browser.execute_script("return document.querySelector('table.scores th').ariaSort")
        == "descending"
    )


def test_without_a_script_nothing_is_missing_but_the_controls(browser, page):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(browser, page, width=390, scheme="light")
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert (
        browser.execute_script("return document.getElementById('tools').checkVisibility()") is False
    )
    assert (
        browser.execute_script("return document.querySelector('.map img').checkVisibility()")
        is True
    )


@pytest.mark.parametrize("width", [390, 780, 1030, 1156, 1280])
def test_words_of_the_legend_are_whole_and_the_summary_fits(browser, page, width):
    show(browser, page, width=width, scheme="light")
    lines = browser.execute_script(
        "return [...document.querySelectorAll('.legend-end')].map(end => {"
        "const range = document.createRange(); range.selectNodeContents(end);"
        "return [end.textContent, range.getClientRects().length]})"
    )
    assert {"against", "in favour", "none", "most"} == {word for word, _ in lines}
    assert {count for _, count in lines} == {1}
    table = "document.querySelector('.summary').parentElement"
    assert browser.execute_script(f"return {table}.scrollWidth - {table}.clientWidth") <= 0
