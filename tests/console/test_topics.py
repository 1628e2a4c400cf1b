"""The console's topics: which there are, their partitions, and their records."""

from __future__ import annotations

import re
from html import unescape
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given, settings as hypothesis_settings, strategies as st

from streams import App, Json, Text
from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.console import topic_reading
from streams.console.formats import ValueFormat
from streams.console.mounted import served
from streams.console.record_parts import Search
from streams.console.topic_reading import Wanted, read_page
from streams.records import Output, TopicPartition
from streams.topology.topic_format import TopicFormat
from tests.support.console_browser import Browser, words

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streams.broker.kafka import KafkaBroker


def app() -> App:
    made = App("shop")
    made.stream("orders", key=Text(), value=Json()).filter(bool, name="some").to("some", value=Json())
    return made


def write(broker: Any, topic: str, values: Sequence[bytes | None], **columns: Any) -> None:
    times = columns.pop("times", None) or list(range(len(values)))
    keys = columns.pop("keys", None) or [str(number).encode() for number in range(len(values))]
    producer = broker.producer()
    producer.produce(Output(topic, keys, values, times, **columns))
    producer.flush(10)
    producer.close()


def memory(**topics: int) -> MemoryBroker:
    broker = MemoryBroker()
    broker.admin().create_topics(
        [NewTopic(name=name.replace("_", "-"), partitions=count) for name, count in topics.items()]
    )
    return broker


def console(broker: Any, **options: Any) -> Any:
    program = app()
    return served(broker, program.settings, [program], **{"token": None, "read_only": True, **options})


def wanted(topic: str, **fields: Any) -> Wanted:
    known: dict[str, Any] = {
        "partition": None,
        "newest_first": True,
        "places": (),
        "offset": None,
        "time": "",
        "isolation": "read_committed",
        "search": Search(),
    }
    return Wanted(topic, **(known | fields))


def all_pages(broker: Any, asked: Wanted) -> list[list[tuple[int, int]]]:
    """The partitions and offsets of the records of each page, until there is no further one."""
    pages = []
    while True:
        page = read_page(broker, TopicFormat(), ValueFormat(), asked)
        pages.append([(record.place.partition, record.offset) for record in page.records])
        if not page.next:
            return pages
        assert page.next != asked.places, "the next page is another one"
        asked = asked._replace(places=page.next)


@hypothesis_settings(max_examples=30)
@given(
    partitions=st.integers(1, 5),
    times=st.lists(st.integers(0, 1000), max_size=400),
    newest=st.booleans(),
    search=st.booleans(),
)
def test_pages_have_each_record_once(partitions: int, times: list[int], newest: bool, search: bool) -> None:
    broker = memory(orders=partitions)
    write(broker, "orders", [b"odd" if number % 2 else b"even" for number in range(len(times))], times=times)
    asked = wanted("orders", newest_first=newest, search=Search(value="odd" if search else ""))
    pages = all_pages(broker, asked)
    found = [place for page in pages for place in page]
    assert len(found) == len(set(found)) == (len(times) // 2 if search else len(times))
    assert all(len(page) <= topic_reading.PAGE_RECORDS for page in pages)
    for number in range(partitions):
        offsets = [offset for partition, offset in found if partition == number]
        if newest:
            assert offsets == sorted(offsets, reverse=True)


def test_the_list_has_who_uses_a_topic_and_hides_internal_ones() -> None:
    broker = memory(orders=3, some=1, shop_counts_changelog=1, other=1)
    with console(broker) as application:
        browser = Browser(application)
        text = browser.words("/topics", lambda text: "orders" in text)
        assert "orders 3 1 shop reads" in text
        assert "some 1 1 shop writes" in text
        assert "shop-counts-changelog" not in text
        assert "1 internal ones are not shown" in text
        assert "shop-counts-changelog" in browser.words("/topics?internal=1")
        only = browser.words("/topics?q=THE")
        assert "other" in only
        assert "orders" not in only
        assert browser.client.get("/topics/missing").status_code == 404


def test_records_are_read_from_a_place_on_and_decoded_by_the_app() -> None:
    broker = memory(orders=2, other=1)
    write(
        broker,
        "orders",
        [b'{"number": %d}' % number for number in range(120)],
        times=[60_000 * number for number in range(120)],
        headers=[[("trace", b"t%d" % number)] for number in range(120)],
        partition=1,
    )
    write(broker, "other", [b"text", b"\x00\x01", None, b'{"a": [1, 2]}'])
    with console(broker) as application:
        browser = Browser(application)
        newest = browser.words("/topics/orders", lambda text: "serdes of shop" in text)
        assert '{"number": 119}' in newest
        assert '{"number": 70}' in newest
        assert '{"number": 69}' not in newest
        page = browser.page("/topics/orders")
        link = next(href for href in re.findall(r'href="([^"]+)"', page) if "before=" in href)
        assert parse_qs(urlsplit(link).query)["before"] == ["1:70"]
        assert '{"number": 69}' in browser.words(link.replace("&amp;", "&"))
        offset = browser.words("/topics/orders?from=offset&offset=30&partition=1")
        assert '{"number": 30}' in offset
        assert '{"number": 29}' not in offset
        moment = browser.words("/topics/orders?from=time&time=1970-01-01T01:40")
        assert '{"number": 100}' in moment
        assert '{"number": 99}' not in moment
        record = browser.words("/topics/orders/1/7")
        assert "trace t7" in record
        assert "000000 7b 22" in record
        assert "There is no such record yet" in browser.words("/topics/orders/1/120")
        broker.admin().delete_records({TopicPartition("orders", 1): 5})
        assert "It was deleted: the partition begins at offset 5" in browser.words("/topics/orders/1/4")
        other = browser.words("/topics/other")
        for text in ("text", "00 01", "null", '{"a": [1, 2]}'):
            assert text in other
        assert "has no partition 7" in browser.words("/topics/orders?partition=7")
        assert "say from which offset on" in browser.words("/topics/orders?from=offset")


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("key=7", {7}),
        ("key=7&key_is=part", {7, 17, 27}),
        ("value=é1", {1, *range(10, 20)}),
        ("path=user.id&equals=12", {12}),
        ("path=tags.0&equals=even", set(range(0, 30, 2))),
        ("header=trace", set(range(0, 30, 3))),
        ("header=trace&header_value=t9", {9}),
        ("path=tags.0&equals=even&header=trace", set(range(0, 30, 6))),
        ("value=nothing", set()),
    ],
)
def test_records_are_found_by_fields(query: str, numbers: set[int]) -> None:
    broker = memory(orders=3)
    values: list[bytes | None] = [
        '{{"user": {{"id": {0}}}, "name": "é{0}", "tags": ["{1}"]}}'.format(
            number, "odd" if number % 2 else "even"
        ).encode()
        for number in range(30)
    ]
    headers = [None if number % 3 else [("trace", b"t%d" % number)] for number in range(30)]
    write(broker, "orders", values, headers=headers)
    with console(broker) as application:
        for order in ("newest", "oldest"):
            found = Browser(application).page(f"/topics/orders?{query}&from={order}")
            shown = re.findall(r"<summary><code>.*?&#34;id&#34;: (\d+)", found)
            assert sorted(map(int, shown)) == sorted(numbers)


def test_a_search_ends_in_time_and_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = memory(orders=1)
    write(broker, "orders", [b"x"] * 9_999 + [b"needle"], partition=0)
    seconds = topic_reading.SEARCH_SECONDS
    with console(broker) as application:
        browser = Browser(application)
        for order in ("oldest", "newest"):
            monkeypatch.setattr(topic_reading, "SEARCH_SECONDS", 0.0)
            late = browser.page(f"/topics/orders?value=needle&from={order}")
            assert "0 found in 0 offsets" in words(late)
            assert "The time was over" in words(late)
            monkeypatch.setattr(topic_reading, "SEARCH_SECONDS", seconds)
            (link,) = re.findall(r'href="([^"]+)">Continue the search', late)
            assert "1 found" in browser.words(unescape(link))


class Leaderless:
    """A broker of which one partition has no leader: requests about it, and others with it, fail."""

    def __init__(self, broker: MemoryBroker, lost: TopicPartition) -> None:
        self._broker, self._lost = broker, lost

    def admin(self) -> Any:
        admin: Any = self._broker.admin()
        lost = self._lost

        def refuse(call: Callable[..., Any]) -> Callable[..., Any]:
            def checked(places: Any, *rest: Any) -> Any:
                assert lost not in set(places)
                return call(places, *rest)

            return checked

        def without_leader(topics: Any) -> set[TopicPartition]:
            return {lost} if lost.topic in topics else set()

        admin.without_leader = without_leader
        for name in ("beginning_offsets", "end_offsets", "offsets_for_times"):
            setattr(admin, name, refuse(getattr(admin, name)))
        return admin

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)


def test_a_partition_without_a_leader_costs_one_row() -> None:
    broker = memory(orders=3)
    write(broker, "orders", [b"a", b"b"], partition=0)
    with console(Leaderless(broker, TopicPartition("orders", 1))) as application:
        browser = Browser(application)
        partitions = browser.words("/topics/orders/partitions")
        assert "1 unknown unknown unknown no broker leads it now" in partitions
        assert "0 0 2 2 records" in partitions
        assert "1 partition has no figures" in partitions
        records = browser.words("/topics/orders")
        assert "partition 1: no broker leads it now" in records
        assert "2 records" in records


def test_many_partitions_are_shown_in_parts() -> None:
    broker = memory(orders=1000)
    write(broker, "orders", [b"v"] * 3000)
    with console(broker) as application:
        browser = Browser(application)
        assert "201 to 400 of 1,000" in browser.words("/topics/orders/partitions?page=2")
        assert "50 records" in browser.words("/topics/orders")


@pytest.mark.kafka
def test_what_was_aborted_or_compacted_is_not_shown(kafka: KafkaBroker, topic: Callable[..., str]) -> None:
    name = topic("records", partitions=1)
    for number, commits in enumerate((True, False, True)):
        producer = kafka.producer(transactional_id=f"{name}-{number}")
        producer.init_transactions(30)
        producer.begin()
        producer.produce(Output(name, [b"k"], [b"value %d" % number], [number], partition=0))
        if commits:
            producer.commit(30)
        else:
            producer.flush(10)
            producer.abort(30)
        producer.close()
    empty = topic("empty", partitions=3)
    with console(kafka) as application:
        browser = Browser(application)
        found = browser.words(f"/topics/{name}")
        assert "value 0" in found
        assert "value 1" not in found
        assert "value 2" in found
        assert "value 1" in browser.words(f"/topics/{name}?uncommitted=1")
        assert "marker of a transaction" in browser.words(f"/topics/{name}/0/1")
        assert "There are no records" in browser.words(f"/topics/{empty}")
        assert "all of it was searched" in browser.words(f"/topics/{empty}?value=x")
        settings = browser.words(f"/topics/{name}/partitions")
        assert "retention.ms -1" in settings
        assert not [group for group in ("streams-reading",) if kafka.admin().group_members(group)]
