"""``make demo-console``, looked at in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.support.processes import running
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.skipif(find_spec("playwright") is None, reason="playwright is not installed"),
]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: Any, kafka_bootstrap: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    folder = tmp_path_factory.mktemp("demo")
    log = folder / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "apps.orders.demo", "--port", "0"],
            cwd=folder,
            env=os.environ | {"KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def address() -> str | None:
        assert process.poll() is None, log.read_text()
        found = re.search(r"The console is at (\S+)", log.read_text())
        return found[1] if found else None

    try:
        yield wait_until(address, 120, what="the console's address"), process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright  # noqa: PLC0415 - not installed everywhere

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page in which no script fails and nothing comes from elsewhere."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    yield page
    page.close()
    assert problems == []


def test_the_app_is_keeping_up_and_the_page_refreshes_itself(demo, page):
    address, _ = demo
    page.goto(address)
    row = page.locator("#apps tbody tr").first
    row.locator(".keeping-up").wait_for(timeout=60_000)
    page.evaluate("document.body.dataset.same = 'yes'")
    before = row.inner_text()
    page.wait_for_function(
        "before => document.querySelector('#apps tbody tr').innerText !== before", arg=before, timeout=30_000
    )
    # It was not loaded again.
    assert page.evaluate("document.body.dataset.same") == "yes"


def test_all_pages_are_reached_by_the_keyboard(demo, page):
    address, _ = demo
    page.goto(address)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.getAttribute('href')"))
    links = page.evaluate(
        "[...document.querySelectorAll('nav.side a')].map(each => each.getAttribute('href'))"
    )
    assert len(links) >= 10
    assert set(links) <= reached


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_and_can_be_read(demo, browser, scheme, width):
    address, _ = demo
    page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.goto(address)
    links = page.evaluate(
        "[...document.querySelectorAll('nav.side a')].map(each => each.getAttribute('href'))"
    )
    for link in links:
        response = page.goto(f"{address.rstrip('/')}{link}")
        assert response.status == 200, link
        assert page.locator("h1").count() == 1, link
        # Only tables and drawings may be wider than the screen: they scroll.
        assert page.evaluate("document.documentElement.scrollWidth") <= width, link
        assert contrast(page) >= 4.5, link
    page.close()
    assert problems == []


def contrast(page: Any) -> float:
    """The lowest contrast between a text and its background, as WCAG 2 computes it."""
    return float(page.evaluate(_CONTRAST))


_CONTRAST = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const part = value => {
      value /= 255;
      return value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    };
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const behind = element => {
    let colour = [255, 255, 255, 1];
    const all = [];
    for (let each = element; each; each = each.parentElement) {
      all.unshift(parse(getComputedStyle(each).backgroundColor));
    }
    for (const [r, g, b, a = 1] of all) {
      colour = [r, g, b].map((value, at) => value * a + colour[at] * (1 - a));
    }
    return colour;
  };
  let lowest = 21;
  for (const element of document.querySelectorAll("main *, nav *, header *")) {
    const own = [...element.childNodes].some(each => each.nodeType === 3 && each.textContent.trim());
    if (!own || element.closest("svg") || !element.offsetParent || element.matches(":disabled")) continue;
    const [a, b] = [luminance(parse(getComputedStyle(element).color)), luminance(behind(element))];
    lowest = Math.min(lowest, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
  }
  return lowest;
}"""


def test_the_overview_draws_what_was_and_the_theme_is_kept(demo, page):
    address, _ = demo
    page.goto(address)
    page.locator("td a", has_text="orders").first.click()
    page.locator("svg polyline").first.wait_for(timeout=60_000)
    assert page.locator("section.chart").count() == 4
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.locator("#theme").click()
    after = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert before != after
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == after


def test_ctrl_c_leaves_nothing(demo):
    _, process = demo
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) >= 3
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120) == 0
    assert running(started) == []
