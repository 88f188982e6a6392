"""Looks at a page in a real browser: Debian's chromium, driven by Selenium."""

import contextlib
import json
import shutil
import tempfile

import pytest

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver") or shutil.which("chromium.chromedriver")
MISSING = [name for name, found in (("chromium", CHROMIUM), ("chromedriver", DRIVER)) if not found]

needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

VIEWS = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]
DARK = "rgb(22, 21, 18)"

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
FOCUSED = """
    const focused = document.activeElement;
    return [focused.dataset.number ?? null, getComputedStyle(focused).outlineStyle];
"""
IMAGES = "return [...document.images].map(i => [i.alt, i.complete && i.naturalWidth])"
# What styles paint is no element: the picture under each map, and the outline over it where the
# evidence is known. Each must have an area, and an image that can be decoded.
PAINTED = """
    const done = arguments[arguments.length - 1];
    const layers = [...document.querySelectorAll(".stack")].flatMap(stack => {
        const known = stack.closest(".case").querySelector(".evidence");
        return (known ? ["::before", "::after"] : ["::before"]).map(pseudo => {
            const style = getComputedStyle(stack, pseudo);
            const source = /^url\\("(data:image.*)"\\)$/.exec(style.backgroundImage);
            const area = parseFloat(style.width) * parseFloat(style.height);
            const shown = style.content === '""' && area > 0;
            const alt = stack.querySelector("img").alt;
            return {name: alt + pseudo, source: shown && source ? source[1] : null};
        });
    });
    const decoded = new Map();
    const load = source => {
        if (!decoded.has(source)) {
            const image = new Image();
            image.src = source;
            decoded.set(source, image.decode().then(() => image.naturalWidth > 0, () => false));
        }
        return decoded.get(source);
    };
    Promise.all(layers.map(async ({name, source}) => [name, source ? await load(source) : false]))
        .then(done);
"""


@contextlib.contextmanager
def browsing():
    """A browser that keeps its logs."""
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


def show(browser, path, *, width, scheme):
    """Open a page in a window of this width, for a reader who prefers this scheme."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(path.as_uri())


def missing_pictures(browser):
    """The pictures of the page, elements or painted by styles, that cannot be seen."""
    found = browser.execute_script(IMAGES) + browser.execute_async_script(PAINTED)
    assert found
    return [name for name, seen in found if not seen]


def check_whole(browser, path, *, width, scheme):
    """The page that is open shows every picture, asks for nothing, fits, and has its colours."""
    assert missing_pictures(browser) == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [
        e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"
    ]
    assert {url for url in asked if not url.startswith("data:")} == {path.as_uri()}
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    colour = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (colour == DARK) == (scheme == "dark")


def check_keyboard(browser):
    """The Tab key reaches every control of the page that is open, and shows where it is."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    controls = browser.execute_script(MARK)
    reached, plain = set(), set()
    for _ in range(len(controls) + 5):
        ActionChains(browser, duration=0).send_keys(Keys.TAB).perform()
        number, outline = browser.execute_script(FOCUSED)
        if number is None or int(number) in reached:
            break
        reached.add(int(number))
        if outline == "none":
            plain.add(int(number))
    assert [controls[n] for n in sorted(set(range(len(controls))) - reached)] == []
    assert [controls[n] for n in sorted(plain)] == [], "focus that cannot be seen"
