"""The page in a real browser: Debian's chromium, driven by Selenium; skipped without."""

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from report_examples import PAYLOADS, example

from jaxplain.report import write_report

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver") or shutil.which("chromium.chromedriver")
MISSING = [name for name, found in (("chromium", CHROMIUM), ("chromedriver", DRIVER)) if not found]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
CONTROLS = "a[href], button, input, summary, [tabindex='0']"
# Numbers every control that can be seen, to tell those that the Tab key reaches from the others.
MARK = f"""
    const seen = [...document.querySelectorAll("{CONTROLS}")].filter(e => e.checkVisibility());
    seen.forEach((e, i) => e.dataset.number = i);
    return seen.map(e => e.outerHTML.slice(0, 120));
"""
FOCUSED = "return document.activeElement.dataset.number ?? null"


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
        try:
            yield driver
        finally:
            driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report whose names all try to run something."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    report = example(names=[f"{PAYLOADS[n]}{n}" for n in range(3)], picture=PAYLOADS[1])
    return write_report(path, report)


def show(browser, path: Path, *, width: int, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(path.as_uri())


@pytest.fixture(
    params=[(w, s) for w in (390, 1280) for s in ("light", "dark")], ids=lambda p: f"{p[0]}-{p[1]}"
)
def shown(browser, page, request):
    width, scheme = request.param
    show(browser, page, width=width, scheme=scheme)
    return browser, width, scheme


def test_the_page_loads_whole_and_asks_the_network_for_nothing(shown, page):
    browser, width, scheme = shown
    pictures = browser.execute_script(
        "return [...document.images].map(i => [i.alt, i.complete && i.naturalWidth])"
    )
    assert pictures
    assert [alt for alt, size in pictures if not size] == []

    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert {url for url in asked if not url.startswith("data:")} == {page.as_uri()}
    assert browser.get_log("browser") == []

    assert browser.title != "stolen"
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    dark = (
        browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        == "rgb(22, 21, 18)"
    )
    assert dark == (scheme == "dark")


def test_tab_reaches_every_control_and_shows_where_it_is(shown):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser, *_ = shown
    controls = browser.execute_script(MARK)
    reached, plain = set(), set()
    for _ in range(len(controls) + 5):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        number = browser.execute_script(FOCUSED)
        if number is None or int(number) in reached:
            break
        reached.add(int(number))
        if (
            browser.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
            == "none"
        ):
            plain.add(int(number))
    assert [controls[n] for n in sorted(set(range(len(controls))) - reached)] == []
    assert [controls[n] for n in sorted(plain)] == [], "focus that cannot be seen"


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
