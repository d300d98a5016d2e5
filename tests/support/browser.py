"""A headless Chromium for tests: pages may say nothing on the console and ask nothing of a network."""

import os
import shutil
import time
from contextlib import contextmanager
from functools import cache

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# in CI (.ci/run) a browser is required: there, a machine without one fails these tests
needs_browser = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("MIL_BROWSER") != "required",
    reason="no Chromium on this machine; install it (Debian: apt-get install chromium) to test the report in a browser",
)
# texts whose colour has too little contrast to the nearest ground behind them that is painted
CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = numbers(colour).map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (numbers(colour)[3] !== 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const found = [];
  for (const node of document.querySelectorAll("body *")) {
    if (![...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim())) continue;
    if (["SCRIPT", "STYLE"].includes(node.tagName)) continue;
    const style = getComputedStyle(node);
    const [one, other] = [light(style.color), light(ground(node))].sort((a, b) => b - a);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.6 && Number(style.fontWeight) >= 700);
    if ((one + 0.05) / (other + 0.05) < (large ? 3 : 4.5)) found.push(`${node.tagName}: ${node.textContent.trim().slice(0, 40)}`);
  }
  return [...new Set(found)].slice(0, 10);
}"""


def wait(tab, expression: str, seconds: float = 20) -> None:
    """Until a JavaScript expression holds. Playwright's own waiting evaluates text in the page, which our pages' headers forbid."""
    end = time.monotonic() + seconds
    while not tab.evaluate(expression):
        assert time.monotonic() < end, expression
        tab.wait_for_timeout(20)


def violations(tab) -> list[str]:
    """What axe-core finds wrong in the page: the rule, its impact, and the element."""
    from axe_playwright_python.sync_playwright import Axe

    # without `preload` axe asks for the page's style sheets again, which a page opened from a file may not
    found = Axe().run(tab, options={"preload": False}).response["violations"]
    return [f"{rule['id']} ({rule['impact']}): {node['html'][:200]}" for rule in found for node in rule["nodes"]]


@cache
def _chromium():
    """Playwright's driver and a Chromium: a second of CPU, so once for the tests of a file."""
    from playwright.sync_api import sync_playwright

    driver = sync_playwright().start()
    return driver, driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])


def close_chromium() -> None:
    """End what `_chromium` started; Playwright's event loop would be in the way of other tests."""
    if _chromium.cache_info().currsize:
        driver, browser = _chromium()
        browser.close()
        driver.stop()
        _chromium.cache_clear()


@contextmanager
def opened(address: str, width: int, height: int, said_too: tuple[str, ...] = ()):
    """A tab with `address`; after the test no console line (but those that hold a text of `said_too`) and no request to others may be left.

    Each has storage, cookies and cache of its own.
    """
    here = (
        ("file:", "data:", "blob:") if address.startswith("file:") else (address.rpartition("/")[0], "data:", "blob:")
    )
    _, browser = _chromium()
    with browser.new_context(viewport={"width": width, "height": height}) as context:
        tab = context.new_page()
        said, asked = [], []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("requestfailed", lambda request: said.append(f"failed: {request.url}"))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address)
        yield tab
        said = [line for line in said if not any(part in line for part in said_too)]
        asked = [url for url in asked if not url.startswith(here)]
        assert not said, said
        assert not asked, asked
