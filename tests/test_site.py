"""The documentation site fetches nothing from other hosts. Needs the tool that ``make docs`` installs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("zensical", reason="make docs installs it")

ROOT = Path(__file__).parents[1]

FETCHED = {"src", "srcset", "poster", "data"}
"""Attributes whose address a browser fetches by itself."""

FETCHING_LINKS = {
    "stylesheet",
    "icon",
    "preload",
    "prefetch",
    "preconnect",
    "dns-prefetch",
    "modulepreload",
    "manifest",
}

LOADERS = {"mermaid", "glightbox", "arithmatex"}
"""Classes of elements for which the theme's script loads another from a content delivery network."""


class Addresses(HTMLParser):
    """The addresses that a browser fetches for a page, and elements that make the theme's script fetch
    more.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.loaders: set[str] = set()
        self.texts: list[str] = []
        self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        self._inside = tag
        self.fetched += [value for key, value in values.items() if key in FETCHED]
        if tag == "link" and FETCHING_LINKS & set(values.get("rel", "").split()):
            self.fetched.append(values["href"])
        self.texts.append(values.get("style", ""))
        self.loaders |= LOADERS & set(values.get("class", "").split())
        # The name and the stars of a repository come from its host.
        if values.get("data-md-component") == "source":
            self.loaders.add("source")

    def handle_data(self, data: str) -> None:
        if self._inside in ("style", "script"):
            self.texts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""


def in_styles(text: str) -> list[str]:
    """The addresses in a style sheet or a script."""
    quoted = r"""url\(\s*["']?([^"')]+)|@import\s+["']([^"']+)"""
    return ["".join(found) for found in re.findall(quoted, text)]


def elsewhere(address: str) -> bool:
    return re.match(r"(\w+:)?//", address) is not None


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "zensical.toml", folder)
    command = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "build" / "site"


def test_there_is_a_page_for_each_page(site):
    made = {page.relative_to(site).with_suffix("").as_posix() for page in site.glob("**/*.html")}
    written = {
        page.relative_to(ROOT / "docs").with_suffix("").as_posix() for page in (ROOT / "docs").glob("**/*.md")
    }
    assert made - {"404"} == written


def test_pages_fetch_nothing_from_other_hosts(site):
    found = {}
    for page in site.glob("**/*.html"):
        addresses = Addresses()
        addresses.feed(page.read_text())
        assert any(address.endswith(".css") for address in addresses.fetched)
        fetched = addresses.fetched + [each for text in addresses.texts for each in in_styles(text)]
        if away := [address for address in fetched if elsewhere(address)] + sorted(addresses.loaders):
            found[page.name] = away
    assert found == {}


def test_style_sheets_fetch_nothing_from_other_hosts(site):
    sheets = list(site.glob("**/*.css"))
    assert sheets
    assert {
        sheet.name: [each for each in in_styles(sheet.read_text()) if elsewhere(each)] for sheet in sheets
    } == {sheet.name: [] for sheet in sheets}


def test_what_pages_fetch_is_there(site):
    missing = []
    for page in site.glob("*.html"):
        addresses = Addresses()
        addresses.feed(page.read_text())
        here = [address for address in addresses.fetched if not address.startswith(("data:", "/"))]
        missing += [address for address in here if not (page.parent / address.partition("?")[0]).is_file()]
    assert missing == []
