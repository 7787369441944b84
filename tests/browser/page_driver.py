# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Chromium, and what one asks of a page."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, Page, sync_playwright

#: Milliseconds from the start of the navigation until the table of hosts stood on the screen and the page was idle.
OPENED = "() => performance.getEntriesByName('ready')[0].startTime"
#: Milliseconds from a change of the filter until the next picture was drawn.
FILTERED = """async (text) => {
  const field = document.getElementById("f-text"), frame = () => new Promise(requestAnimationFrame);
  field.focus();
  await frame();
  const started = performance.now();
  field.value = text;
  field.dispatchEvent(new InputEvent("input", {bubbles: true}));
  await frame();
  await new Promise((done) => setTimeout(done));
  return performance.now() - started;
}"""

GO = """(route) => new Promise((done) => {
  if (location.hash === route) { done(); return; }
  addEventListener("hashchange", () => requestAnimationFrame(() => setTimeout(done)), {once: true});
  location.hash = route;
})"""


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, without a window."""
    path = shutil.which("chromium")
    if path is None:
        raise RuntimeError("there is no chromium: run tests/browser/chromium, or make browser")
    # Chromium's sandbox does not start for root. The pages are our own.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def wait_until_open(page: Page) -> float:
    """Wait until the page answers; milliseconds since its navigation began."""
    page.wait_for_function("performance.getEntriesByName('ready').length > 0")
    return page.evaluate(OPENED)


def go(page: Page, route: str) -> None:
    """To a route of the page that is open, such as ``#host/edge-1``, and until it is shown."""
    page.evaluate(GO, route)
