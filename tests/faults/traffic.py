"""The input of the fault suite: numbered readings, orders, and tables to join."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from streams.records import Output

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from streams.broker import Producer

WINDOW = 10_000
GRACE = 5_000
"""Milliseconds, as ``WINDOW``."""

STEP = 20
"""The average step of event time between two readings, in milliseconds."""

GROUPS = 31
KEYS = 200
ARTICLES = 40
BRANDS = 8
POISON = 0.002
LATE = 0.1


class Reading(msgspec.Struct, frozen=True):
    """``number`` counts the key's readings from 1; a negative amount always fails."""

    key: str
    number: int
    amount: int


class Article(msgspec.Struct, frozen=True):
    """One version of an article, counted from 1."""

    version: int
    brand: str


class Brand(msgspec.Struct, frozen=True):
    """One version of a brand, counted from 1."""

    version: int


class Order(msgspec.Struct, frozen=True):
    """``number`` counts all orders from 1."""

    number: int


class Sent(NamedTuple):
    """A reading with its event time (milliseconds since the epoch)."""

    reading: Reading
    time: int


class Traffic:
    """Generates random readings, orders, and versions of articles and brands, and writes them.

    ``insist`` repeats a call until the broker answers.
    """

    def __init__(
        self,
        producer: Producer,
        prefix: str,
        choose: random.Random,
        insist: Callable[[Callable[[], object]], object],
    ) -> None:
        self.producer = producer
        self._prefix = prefix
        self._choose = choose
        self._insist = insist
        self._time = 1_000_000
        self.readings: dict[str, list[Sent]] = defaultdict(list)
        self.articles: dict[str, list[Article]] = defaultdict(list)
        self.brands: dict[str, list[Brand]] = defaultdict(list)
        self.orders: dict[int, str] = {}
        """The article of each order, by number."""

    @property
    def sent(self) -> int:
        """The number of readings and orders."""
        return sum(map(len, self.readings.values())) + len(self.orders)

    def fill_tables(self) -> None:
        """Write the first version of each article and brand."""
        self._write_table("brands", self.brands, [(f"brand {n}", Brand(1)) for n in range(BRANDS)])
        first = [(f"article {n}", Article(1, f"brand {n % BRANDS}")) for n in range(ARTICLES)]
        self._write_table("articles", self.articles, first)
        self._insist(lambda: self.producer.flush(60))

    def send(self, count: int) -> None:
        """Readings of the usual keys; some late, some that always fail; sometimes orders, articles or
        brands.
        """
        choose = self._choose
        self.send_readings([f"key {choose.randrange(KEYS)}" for _ in range(count)])
        for _ in range(1 + count // 200):
            self._change_tables()
        self._order(1 + count // 20)
        self._insist(lambda: self.producer.flush(60))

    def send_ballast(self, count: int) -> None:
        """One reading for each of that many new keys: state that has to be restored."""
        for start in range(0, count, 10_000):
            self.send_readings([f"ballast {number}" for number in range(start, min(count, start + 10_000))])
            self._insist(lambda: self.producer.flush(60))

    def send_readings(self, keys: list[str]) -> None:
        choose = self._choose
        rows = []
        for key in keys:
            self._time += STEP
            amount = -1 if choose.random() < POISON else choose.randrange(1_000_000)
            late = choose.randrange(40_000) if choose.random() < LATE else 0
            known = self.readings[key]
            known.append(Sent(Reading(key, len(known) + 1, amount), max(0, self._time - late)))
            rows.append(known[-1])
        self._write(
            "readings",
            [row.reading.key for row in rows],
            [row.reading for row in rows],
            [row.time for row in rows],
        )

    def end_windows(self, partitions: int) -> None:
        """A reading far ahead in each partition: all windows before it close."""
        self._time += 10 * (WINDOW + GRACE)
        # Enough for each partition to get one that is not late.
        self.send(500 * partitions)

    def _order(self, count: int) -> None:
        keys = [f"article {self._choose.randrange(ARTICLES)}" for _ in range(count)]
        first = len(self.orders) + 1
        numbers = range(first, first + count)
        self.orders.update(zip(numbers, keys, strict=True))
        self._write("orders", keys, [Order(number) for number in numbers], [self._time] * count)

    def _change_tables(self) -> None:
        choose = self._choose
        brand, article = f"brand {choose.randrange(BRANDS)}", f"article {choose.randrange(ARTICLES)}"
        self._write_table("brands", self.brands, [(brand, Brand(len(self.brands[brand]) + 1))])
        changed = Article(len(self.articles[article]) + 1, f"brand {choose.randrange(BRANDS)}")
        self._write_table("articles", self.articles, [(article, changed)])

    def _write_table(self, topic: str, known: dict[str, list[Any]], rows: list[tuple[str, Any]]) -> None:
        for key, value in rows:
            known[key].append(value)
        self._write(topic, [key for key, _ in rows], [value for _, value in rows], [self._time] * len(rows))

    def _write(self, topic: str, keys: list[str], values: list[Any], times: list[int]) -> None:
        encode = msgspec.json.encode
        output = Output(
            f"{self._prefix}-{topic}", [key.encode() for key in keys], list(map(encode, values)), times
        )
        # Not all brokers know a new topic yet; if refused, nothing was written.
        self._insist(lambda: self.producer.produce(output))
