"""State: stores with their partitions, keys, windows and ranges, as workers answer."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Json, Text, Tumbling, hours
from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.records import Output
from tests.console.pages import answer, browsing, report, reporting
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from streams.broker.kafka import KafkaBroker

DAY = 24 * 3600 * 1000


def visits(prefix: str, **settings: Any) -> App:
    app = App(f"{prefix}-visits", **settings)
    stream = app.stream(f"{prefix}-in", key=Text(), value=Json(dict[str, Any]))
    stream.group_by_key().count("visits").to(f"{prefix}-out", key=Text())
    stream.group_by_key().window(Tumbling(days=1), grace=hours(72)).count("daily").updates().to(
        f"{prefix}-out", key=Text()
    )
    stream.to_table("last").to_stream().to(f"{prefix}-last")
    return app


@pytest.mark.kafka
def test_keys_windows_and_ranges_of_a_running_app(
    kafka_bootstrap: str, kafka: KafkaBroker, prefix: str, tmp_path: Path
) -> None:
    kafka.admin().create_topics(
        [NewTopic(name=f"{prefix}-{name}", partitions=2) for name in ("in", "out", "last")]
    )
    producer = kafka.producer()
    keys = [b"ann", b"ann", b"bob/cart"]
    values = [b'{"page": "/", "email": "a@example.com"}'] * 3
    producer.produce(Output(f"{prefix}-in", keys, values, [5 * DAY, 6 * DAY, 6 * DAY]))
    producer.flush(30)
    producer.close()
    app = visits(
        prefix,
        bootstrap_servers=kafka_bootstrap,
        http_port=0,
        state_dir=str(tmp_path),
        group_protocol="classic",
    )
    stop = threading.Event()
    worker = threading.Thread(target=lambda: app.run(stop=stop))
    worker.start()
    try:
        with browsing(app, kafka, masked=["email"]) as browser:
            base = f"/apps/{app.name}/state"
            page = browser.wait(base, "all 2", without="restoring")
            assert all(name in page for name in ("visits", "daily", "windows"))
            wait_until(
                lambda: "Value of ann 2 As of the last commit" in browser.text(f"{base}/visits?key=ann"), 60
            )
            browser.wait(f"{base}/visits?key=bob/cart", "Value of bob/cart 1")
            browser.wait(f"{base}/visits?key=nobody", "no value The store has nothing under this key")
            browser.wait(f"{base}/last?key=ann", '{ "page": "/", "email": "•••" }')
            assert "a@example.com" not in browser.wait(f"{base}/last?list=1", '{"page": "/", "email": "•••"}')
            browser.wait(f"{base}/daily?key=ann", "1970-01-06 00:00:00 UTC")
            only = browser.wait(f"{base}/daily?key=ann&start=1970-01-07", "1970-01-07 00:00:00 UTC")
            assert "1970-01-06 00:00:00" not in only
            listed = browser.wait(f"{base}/visits?list=1", "bob/cart 1")
            assert "ann 2" in listed
            # An address that is no question, or no base64, is refused in words.
            assert "is not a position" in browser.text(f"{base}/daily?key=ann&start=soon")
            browser.wait(f"{base}/visits?key=%21&encoding=base64", "has keys of Text")
            assert browser.client.get(f"{base}/none").status_code == 404
    finally:
        stop.set()
        worker.join(60)


def test_what_is_restored_or_held_by_nobody_is_said() -> None:
    app = visits("shop")
    store = {
        "name": "visits",
        "windowed": False,
        "key": "Text",
        "partitions": 3,
        "held": [0],
        "restoring": [1],
        "approximate_count": 7,
    }
    answers = {
        "/stores": answer({"stores": [store]}),
        "/stores/visits/keys/ann": answer({"reason": "unavailable", "error": "it is being restored"}, 503),
    }
    metrics = "# TYPE streams_state_bytes gauge\nstreams_state_bytes 2500000.0\n"
    with (
        reporting(report("shop-visits", "w1"), metrics=metrics, answers=answers) as address,
        browsing(app, MemoryBroker(), urls=[address]) as browser,
    ):
        page = browser.wait("/apps/shop-visits/state", "1 of 3 restoring")
        assert "visits aggregate Text unknown 1 of 3 restoring w1 1" in page
        browser.wait("/apps/shop-visits/state", "2.5 MB w1")
        page = browser.wait("/apps/shop-visits/state/visits?key=ann", "unavailable now it is being restored")
        assert "1 of 3 partitions are being restored" in page
        assert "No worker that answers holds 1 of 3 partitions: 2." in page


def test_without_workers_stores_are_known_and_their_content_is_not() -> None:
    with browsing(visits("shop"), MemoryBroker()) as browser:
        page = browser.wait("/apps/shop-visits/state", "No worker answers")
        assert "visits aggregate unknown unknown" in page
        browser.wait("/apps/shop-visits/state/visits?key=ann", "nothing can be looked up")
