"""A browser for tests of the console: follows a page until it is complete, and sends its forms."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

from starlette.testclient import TestClient

from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable


class Forms(HTMLParser):
    """The forms of a page: their addresses and what they would send."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self._area: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form":
            self.found.append((given.get("action") or "", {}))
        elif tag in ("input", "textarea") and self.found and given.get("name"):
            name = given["name"] or ""
            if tag == "textarea":
                self._area = name
                self.found[-1][1][name] = ""
            elif given.get("type") != "checkbox" or "checked" in given:
                self.found[-1][1][name] = given.get("value") or ""

    def handle_data(self, data: str) -> None:
        if self._area is not None:
            # As browsers do, without the line end behind the tag.
            self.found[-1][1][self._area] += data.removeprefix("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea":
            self._area = None


class Browser:
    """Reads pages of a console, and sends their forms."""

    def __init__(self, application: Any) -> None:
        self.client = TestClient(application, base_url="http://localhost", follow_redirects=False)

    def page(self, path: str, shows: Callable[[str], bool] = lambda _: True, status: int = 200) -> str:
        """The page at a path, once it is complete and ``shows`` what is waited for."""
        seen: list[Any] = []

        def complete() -> bool:
            seen.append(self.client.get(path))
            text = seen[-1].text
            return seen[-1].status_code == status and " …</p>" not in text and shows(words(text))

        try:
            wait_until(complete, 60)
        except AssertionError:
            raise AssertionError(f"{path}: {seen[-1].status_code}\n{words(seen[-1].text)}") from None
        return str(seen[-1].text)

    def words(self, path: str, shows: Callable[[str], bool] = lambda _: True) -> str:
        """The text of a page."""
        return words(self.page(path, shows))

    def send(self, page: str, address: str, **fields: str) -> Any:
        """Send the form of a page whose address ends so, with these fields changed."""
        (form,) = [
            (action, known)
            for action, known in Forms(page).found
            if action.partition("#")[0].endswith(address)
        ]
        return self.client.post(form[0], data={**form[1], **fields})


def words(page: str) -> str:
    """The text of a page's content, without elements and repeated spaces."""
    content = page[page.index("<main") :] if "<main" in page else page
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", content)).split())
