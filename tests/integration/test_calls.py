"""Async functions, and dead letters downstream of an internal topic, on the real broker."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from streams.broker.reading import read_to_end
from streams.records import Output
from tests.integration.conftest import Copy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from streams.records import Headers

pytestmark = pytest.mark.kafka


class Calls(Copy):
    """The app of ``calls_app``."""

    name = "calls"


@pytest.fixture
def calls(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> Iterator[Calls]:
    made = Calls(kafka_bootstrap, prefix, tmp_path)
    made.create_topics()
    yield made
    made.end()


def test_calls_come_through_a_kill_once_and_dead_letters_are_the_input_records(calls: Calls):
    def written() -> int:
        return sum(map(len, read_to_end(calls.broker, [calls.output])))

    worker = calls.start(transaction_timeout=3)
    words = [f"good{number}" for number in range(1_000)] + [f"bad{number}" for number in range(20)]
    producer = calls.broker.producer()
    for number in range(4):
        own = [word.encode() for word in words[number::4]]
        headers: list[Headers | None] = [[("word", word)] for word in own]
        producer.produce(Output(calls.input, own, own, [1_000] * len(own), headers, partition=number))
    producer.flush(30)
    calls.wait_for(lambda: written() > 0, 60, "the first results")
    worker.kill()
    calls.start()
    calls.wait_for(lambda: written() >= 1_000, 90, "all results")
    assert calls.outputs() == Counter(f"good{number} found" for number in range(1_000))

    def letters() -> list[tuple[bytes | None, dict[str, bytes | None]]]:
        return [
            (value, dict(headers or ()))
            for fetched in read_to_end(calls.broker, [calls.dead_letters])
            for value, headers in zip(fetched.values(), fetched.headers() or (), strict=True)
        ]

    calls.wait_for(lambda: len(letters()) >= 20, 60, "all dead letters")
    found = letters()
    assert sorted(value or b"" for value, _ in found) == sorted(b"bad%d" % number for number in range(20))
    for value, about in found:
        assert about["word"] == value
        assert about["__streams.errors.topic"] == calls.input.encode()
        place = words.index((value or b"").decode())
        assert about["__streams.errors.partition"] == b"%d" % (place % 4)
        assert about["__streams.errors.offset"] == b"%d" % (place // 4)
        assert about["__streams.errors.timestamp"] == b"1000"
        assert "__streams.errors.payload" not in about
