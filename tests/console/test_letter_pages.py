"""What the console shows of dead letters: filters, masked fields, apps without their program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from streams import App, Json, Text
from streams.broker import NewTopic
from streams.broker.range_reader import RangeReader
from streams.console import letter_index
from streams.console.letter_index import LetterIndex
from streams.console.mounted import served
from streams.records import Output, TopicPartition
from streams.replay.dead_letters.rows import Selection
from tests.support.console_browser import Browser, Forms, words
from tests.support.retrying import Retrying
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    import pytest

    from streams.records import Fetched

HOME = "/apps/shop/dead-letters"


class Order(msgspec.Struct):
    number: int
    cents: int


def shop() -> App:
    app = App("shop", dead_letter_limit=1.0)

    def price(order: Order) -> Order:
        if order.cents < 0:
            raise ValueError(f"order {order.number} costs <b>{order.cents}</b>")
        return order

    app.stream("in", key=Text(), value=Json(Order)).map(price, name="price").to("out", value=Json(Order))
    return app


def site_with(values: Sequence[bytes | None], keys: Sequence[str] | None = None) -> Retrying:
    """An app whose input was processed."""
    site = Retrying(shop(), {"in": 2, "out": 2})
    worker = site.worker()
    encoded: list[bytes | None] = [
        (str(number % 5) if keys is None else keys[number]).encode() for number in range(len(values))
    ]
    site.write(Output("in", encoded, values, [1_000 * number for number in range(len(values))]))
    site.settle(worker)
    return site


def negative(count: int) -> list[bytes | None]:
    return [msgspec.json.encode({"number": number, "cents": -number - 1}) for number in range(count)]


def console(site: Retrying, **options: Any) -> Any:
    options = {"token": None, "read_only": False, **options}
    return served(site.broker, site.app.settings, [site.app], **options)


def test_letters_are_filtered_and_listed_in_parts() -> None:
    site = site_with([*negative(150), b'{"number": 1, "cents": "x"}', b"\xff\x00"])
    with console(site) as application:
        browser = Browser(application)
        assert "152 open" in browser.words(HOME)
        assert "152 dead letters" in browser.words(f"{HOME}/list")
        assert "101 to 152 of 152" in browser.words(f"{HOME}/list?page=2")
        assert "30 dead letters" in browser.words(f"{HOME}/list?exception=ValueError&key=3")
        assert "1 dead letter " in browser.words(f"{HOME}/list?message=order 7 costs")
        assert "No dead letter matches." in browser.words(f"{HOME}/list?state=purged")
        assert "No dead letter matches." in browser.words(f"{HOME}/list?topic=other")
        assert "No dead letter matches." in browser.words(f"{HOME}/list?since=2100-01-01")
        assert browser.client.get(f"{HOME}/list?since=yesterday").status_code == 400
        assert browser.client.get(f"{HOME}/list?state=x").status_code == 400
        # What people wrote is text.
        assert "<b>-1</b>" not in browser.page(f"{HOME}/list?message=order 0 ")
        # The same selection is what an action would be done to.
        confirm = browser.page(f"{HOME}/retry?message=order 7 costs&key=2")
        assert "1 dead letter will be retried" in words(confirm)
        assert browser.client.get(f"{HOME}/0/999999").status_code == 404
        assert browser.client.get(f"{HOME}/7/0").status_code == 404


def test_bytes_and_what_cannot_be_read_are_shown_and_edited_in_hexadecimal() -> None:
    site = site_with([b"\xff\x00A"])
    (row,) = site.selected()
    address = f"{HOME}/{row.letter.id.partition}/{row.letter.id.offset}"
    with console(site) as application:
        browser = Browser(application)
        page = browser.page(address)
        assert "It cannot be read as Json(Order)" in words(page)
        assert "000000 ff 00 41 ··A" in words(page)
        assert "not in hexadecimal" in words(browser.send(page, "/edit", value="xy").text)
        done = browser.send(page, "/edit", value=b'{"number":1,"cents":2}'.hex())
        assert done.status_code == 303
        assert "edited" in browser.words(address, lambda text: '"cents": 2' in text)
    (row,) = site.selected()
    assert row.record.value == b'{"number":1,"cents":2}'
    assert row.letter.value == b"\xff\x00A"


def test_an_app_without_its_program_is_shown_and_not_changed() -> None:
    site = site_with(negative(3))
    site.admin.create_topics([NewTopic(name="shop-replicas", partitions=1)])
    (row, *_) = site.selected()
    with served(
        site.broker, site.app.settings, [], token=None, read_only=False, discover=True
    ) as application:
        browser = Browser(application)
        wait_until(lambda: browser.client.get(HOME).status_code == 200)
        assert "3 open" in browser.words(HOME, lambda text: "price ValueError" in text)
        page = browser.page(f"{HOME}/{row.letter.id.partition}/{row.letter.id.offset}")
        assert '"cents": -' in words(page)
        assert "The console does not have the program of this app" in words(page)
        assert not Forms(page).found
        confirm = browser.page(f"{HOME}/retry")
        assert "does not have the program of app 'shop'" in words(confirm)
        assert not Forms(confirm).found


def test_a_read_only_console_changes_nothing() -> None:
    site = site_with(negative(3))
    with console(site, read_only=True) as application:
        browser = Browser(application)
        page = browser.page(f"{HOME}/list")
        assert not [action for action, _ in Forms(page).found if action != f"{HOME}/list"]
        assert "Retry all" not in page
        assert browser.client.post(f"{HOME}/retry", data={"count": "3"}).status_code == 403


def test_masked_fields_are_neither_shown_nor_found_and_stay_in_an_edit() -> None:
    value = b'{"number": 1, "cents": "x", "email": "secret@example.com"}'
    site = site_with([value, b'{"email": "broken@example.com"', b'{"number": 1, "cents": "y"}'])
    rows = {row.letter.value: row.letter.id for row in site.selected()}
    places = {value: f"{HOME}/{it.partition}/{it.offset}" for value, it in rows.items()}
    with console(site, masked=["email"]) as application:
        browser = Browser(application)
        page = browser.page(places[value])
        assert '"email": "•••"' in words(page)
        for address in places.values():
            assert "example.com" not in browser.page(address)
        # In hexadecimal neither.
        assert value.hex(" ")[:20] not in page
        (mode, text) = next(
            (fields["value_mode"], fields["value"])
            for action, fields in Forms(page).found
            if "/edit" in action
        )
        assert mode == "masked"
        as_hex = browser.send(page, "/edit", value_mode="hex", value="00")
        assert as_hex.status_code == 400
        assert browser.send(page, "/edit", value=text.replace('"x"', "5")).status_code == 303
        for query in ("value=secret", "path=email&equals=secret@example.com", "path=email&equals=•••"):
            found = browser.words(f"/topics/in?{query}")
            assert "secret@" not in found.replace(query, "")
            assert "0 records found" in found or "cannot be searched" in found or "0 found" in found, found
        assert "example.com" not in browser.page("/topics/in")
        assert "example.com" not in browser.page("/topics/shop-dead-letters")
    (row,) = site.selected(places=[rows[value].place])
    assert msgspec.json.decode(row.record.value or b"") == {
        "number": 1,
        "cents": 5,
        "email": "secret@example.com",
    }


def test_an_index_reads_each_letter_once_and_follows_what_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_with(negative(40))
    index = LetterIndex(site.broker, "shop", "shop-dead-letters")
    seen: list[int] = []

    class Counting(RangeReader):
        def read(self, *arguments: Any) -> Generator[Fetched, None, None]:
            for fetched in super().read(*arguments):
                seen.append(len(fetched))
                yield fetched

    monkeypatch.setattr(letter_index, "RangeReader", Counting)
    first = index.update()
    assert [(group.step, group.exception, group.count) for group in first.groups] == [
        ("price", "ValueError", 40)
    ]
    assert sum(seen) == 40
    assert index.update().version == first.version
    assert sum(seen) == 40
    site.retry(places=[first.lines[0].id.place])
    again = index.update()
    assert again.version != first.version
    assert again.states == {"open": 39, "waiting": 1}
    # Deleted at the beginning of the topic, or with the topic.
    site.admin.delete_records({TopicPartition("shop-dead-letters", 0): 1})
    assert len(index.update().lines) == 39
    site.admin.delete_topics(["shop-dead-letters"])
    assert not index.update().lines


def test_of_too_many_letters_the_newest_are_kept_and_the_others_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(letter_index, "MOST_LETTERS", 10)
    site = site_with(negative(40), ["a"] * 40)
    found = LetterIndex(site.broker, "shop", "shop-dead-letters").update()
    assert len(found.lines) + found.left_out == 40
    assert found.left_out > 0


def test_selected_places_are_read_alone() -> None:
    site = site_with(negative(40))
    every = [row.letter.id.place for row in site.selected()]
    chosen = [every[3], every[17], every[39]]
    assert [row.letter.id.place for row in site.letters.rows(Selection(places=chosen))] == sorted(
        chosen, key=every.index
    )
    assert not list(site.letters.rows(Selection(places=["0:99999", "44:0"])))
