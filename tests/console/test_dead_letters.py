"""The console's dead letters: listed, edited and retried, on a real broker with a worker that runs."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from streams import App, Json, Text
from streams.broker.reading import read_to_end
from streams.console.audit import TOPIC as AUDIT_TOPIC
from streams.console.mounted import served
from streams.records import Output
from streams.replay.dead_letters.rows import DeadLetters
from tests.support.console_browser import Browser, Forms, words
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams.broker.kafka import KafkaBroker


class Order(msgspec.Struct):
    number: int
    cents: int
    currency: str = "EUR"


class Shop:
    """An app of which a third of the input fails at its source, and two more in a step until it is fixed."""

    def __init__(self, name: str, topics: tuple[str, str], **settings: Any) -> None:
        self.faults = {"negative", "currency"}
        self.input, self.output = topics
        self.app = App(name, dead_letter_limit=1.0, **settings)
        orders = self.app.stream(self.input, key=Text(), value=Json(Order))
        orders.map(self.price, name="price").to(self.output, value=Json(Order))

    def price(self, order: Order) -> Order:
        if "negative" in self.faults and order.cents < 0:
            raise ValueError(f"order {order.number} costs {order.cents}")
        if "currency" in self.faults and order.currency != "EUR":
            raise KeyError(order.currency)
        return order

    def records(self, count: int) -> Output:
        values: list[bytes | None] = []
        for number in range(count):
            cents: Any = ("twelve", -5, 7)[number % 3]
            order = {"number": number, "cents": cents, "currency": ("EUR", "EUR", "XXX")[number % 3]}
            values.append(msgspec.json.encode(order))
        keys: list[bytes | None] = [f"customer-{number % 7}".encode() for number in range(count)]
        return Output(self.input, keys, values, [1_700_000_000_000 + number for number in range(count)])


@pytest.fixture
def shop(kafka: KafkaBroker, kafka_bootstrap: str, prefix: str, topic: Callable[..., str]) -> Iterator[Shop]:
    made = Shop(
        f"{prefix}-shop", (topic("orders"), topic("priced")), bootstrap_servers=kafka_bootstrap, http_port=0
    )
    producer = kafka.producer()
    producer.produce(made.records(300))
    producer.flush(30)
    producer.close()
    stop = threading.Event()
    thread = threading.Thread(target=made.app.run, kwargs={"broker": kafka, "stop": stop})
    thread.start()
    yield made
    stop.set()
    thread.join(30)


@pytest.mark.kafka
def test_letters_of_three_reasons_are_edited_and_retried(shop: Shop, kafka: KafkaBroker) -> None:
    name = shop.app.name
    home = f"/apps/{name}/dead-letters"

    def outputs() -> Counter[int]:
        return Counter(
            msgspec.json.decode(value or b"", type=Order).number
            for fetched in read_to_end(kafka, [shop.output])
            for value in fetched.values()
        )

    def states() -> Counter[tuple[str, str]]:
        return Counter((row.exception, str(row.state)) for row in DeadLetters(shop.app, kafka).rows())

    def actions() -> list[tuple[str, str]]:
        if AUDIT_TOPIC not in kafka.admin().topics():
            return []
        found = [
            msgspec.json.decode(value or b"")
            for fetched in read_to_end(kafka, [AUDIT_TOPIC])
            for value in fetched.values()
        ]
        return [(each["action"], each["outcome"]) for each in found if each["app"] == name]

    three = {("ValidationError", "open"): 100, ("ValueError", "open"): 100, ("KeyError", "open"): 100}
    with served(kafka, shop.app.settings, [shop.app], token=None, read_only=False) as application:
        browser = Browser(application)
        groups = browser.words(home, lambda text: "300 open" in text)
        for sentence in ("orders ValidationError Expected `int`", "price ValueError order", "price KeyError"):
            assert sentence in groups.replace(shop.input, "orders"), groups
        assert states() == three

        # A wrong edit: refused with field and position, and nothing is written.
        listed = browser.page(f"{home}/list?exception=ValidationError&key=customer-0")
        place = listed.partition(f'href="{home}/list"')[2]
        place = next(
            part.partition('"')[0] for part in place.split(f'href="{home}/')[1:] if part[0].isdecimal()
        )
        letter = f"{home}/{place}"
        page = browser.page(letter)
        number = msgspec.json.decode(page_value(page))["number"]
        wrong = browser.send(page, "/edit", value='{\r\n  "number": 1,\r\n  "cents": "12"\r\n}', then="retry")
        assert wrong.status_code == 422
        refused = words(wrong.text)
        assert "Nothing was stored." in refused
        assert "$.cents" in refused
        assert "line 3, column 12" in refused
        assert '"cents": "12"' in refused
        broken = browser.send(page, "/edit", value='{"number": 1,\r\n"cents" 12}', then="retry")
        assert broken.status_code == 422
        assert "line 2, column 9" in words(broken.text)
        assert states() == three
        assert not actions()

        # The right one has one output.
        right = msgspec.json.encode({"number": number, "cents": 12}).decode()
        done = browser.send(page, "/edit", value=right, then="retry")
        assert done.status_code == 303
        assert done.headers["location"].endswith(letter)
        assert "edited, and retry requested" in words(browser.client.get(letter).text)
        history = browser.words(letter, lambda text: f"Dead letter {place.replace('/', ':')} retried" in text)
        assert "processed" in history
        assert "retry requested" in history
        wait_until(lambda: outputs() == {number: 1}, what="one output")
        assert actions() == [
            ("edit a dead letter", "begun"),
            ("edit a dead letter", "done: edited, and retry requested: a worker processes it now"),
        ]

        # All of one reason: as many are retried as were confirmed.
        shop.faults.discard("negative")
        confirm = browser.page(f"{home}/retry?exception=ValueError")
        assert "100 dead letters will be retried" in words(confirm)
        # What is no form, has no token, another one or another number changes nothing.
        before = states()
        assert browser.client.get(f"{letter}/edit").status_code == 405
        assert browser.client.post(f"{home}/retry", data={"count": "100"}).status_code == 403
        assert browser.send(confirm, "/retry", form_token="x" * 64).status_code == 403
        assert browser.client.post(f"{home}/purge", data={"count": "300"}).status_code == 403
        other = browser.send(confirm, "/retry", count="99")
        assert other.status_code == 409
        assert "99 were confirmed, and it has 100 now. Nothing was done." in words(other.text)
        assert states() == before
        assert len(actions()) == 2

        assert browser.send(other.text, "/retry").status_code == 303
        browser.words(home, lambda text: "199 open 0 waiting for their retry 101 retried" in text)
        negative = {each for each in range(300) if each % 3 == 1}
        expected = Counter({number: 1, **dict.fromkeys(negative, 1)})
        wait_until(lambda: outputs() == expected, what="one output of each")
        assert states() == {
            ("ValidationError", "open"): 99,
            ("ValidationError", "retried"): 1,
            ("ValueError", "retried"): 100,
            ("KeyError", "open"): 100,
        }
        assert actions()[2:] == [
            ("retry dead letters", "begun"),
            ("retry dead letters", "done: retry requested of 100 dead letters: workers process them now"),
        ]

        # Discarded, likewise.
        confirm = browser.page(f"{home}/purge?exception=KeyError")
        assert "100 dead letters will be discarded" in words(confirm)
        assert browser.send(confirm, "/purge").status_code == 303
        assert states()["KeyError", "purged"] == 100
        audit = browser.words("/audit", lambda text: "purge dead letters" in text)
        assert "100 dead letters discarded" in audit


def page_value(page: str) -> str:
    """The value in the form that edits a dead letter."""
    return next(fields["value"] for action, fields in Forms(page).found if "/edit" in action)
