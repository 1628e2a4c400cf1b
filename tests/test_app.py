"""The representations of an app."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from streams import App, Text


def shop() -> App:
    app = App("shop", client={"sasl.password": "marker"})
    app.stream(re.compile("orders-<b>.*"), value=Text()).filter(bool, name="paid & <i>sent</i>").to("paid")
    return app


class Reader(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.elements.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_its_repr_is_its_name_and_topology():
    app = shop()
    first, *lines = repr(app).splitlines()
    assert first == "App('shop')"
    assert lines == [f"  {line}" for line in app.topology.describe().splitlines()]
    assert "marker" not in repr(app)


def test_a_notebook_shows_the_topology_and_takes_no_name_for_markup():
    app = shop()
    page = Reader(app._repr_html_())
    assert page.elements == ["b", "pre"]
    assert page.text == f"App shop{app.topology.describe()}"


def test_an_incomplete_app_shows_what_is_missing():
    app = App("shop")
    assert (
        repr(app)
        == "App('shop')\n  not complete: the app has no stream\n    hint: start with app.stream(topic)"
    )
    app.stream("<orders>")
    assert "'<orders>' is a dead end" in repr(app)
    assert "&lt;orders&gt;" in app._repr_html_()
