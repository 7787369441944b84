# Copyright: Contributors to the edgesec.nanomq collection
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One Chromium for all tests; a context of its own, with whatever goes wrong in it, for each."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import fleet
import page_driver
import pytest
from ansible_collections.edgesec.nanomq.plugins.plugin_utils import report_html
from playwright.sync_api import Browser, Page

SCREENSHOTS = pathlib.Path(__file__).resolve().parents[2] / ".cache" / "screenshots"
MEASURED: list[str] = []


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with page_driver.chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int | str], str]:
    """The address of the page of a fleet of that many hosts, or of the hostile one."""
    folder, made = tmp_path_factory.mktemp("reports"), {}

    def address(kind: int | str) -> str:
        if kind not in made:
            document = fleet.hostile() if kind == "hostile" else fleet.fleet(int(kind))
            made[kind] = folder / f"{kind}.html"
            made[kind].write_text(report_html.render(document), encoding="utf-8")
        return made[kind].as_uri()

    return address


@pytest.fixture
def visit(browser: Browser, report: Callable[[int | str], str]) -> Iterator[Callable[..., Page]]:
    """Open the page of a fleet. The test fails if the page logs an error or asks the network for anything."""
    contexts, trouble = [], []

    def open_page(kind: int | str, route: str = "", width: int = 1280, height: int = 900, **more: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **more)
        contexts.append(context)
        page = context.new_page()
        address = report(kind)
        page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("request", lambda request: request.url.split("#")[0] == address or trouble.append(request.url))
        page.goto(address + route)
        if more.get("java_script_enabled", True):
            page_driver.wait_until_open(page)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert trouble == []


@pytest.fixture(scope="session")
def screenshot() -> Callable[..., None]:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    def take(page: Page, name: str, **more: Any) -> None:
        page.screenshot(path=SCREENSHOTS / f"{name}.png", **more)

    return take


@pytest.fixture(scope="session")
def measured() -> Callable[[str], None]:
    """Say a figure at the end of the run."""
    return MEASURED.append


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for line in MEASURED:
        terminalreporter.write_line(f"measured: {line}")
