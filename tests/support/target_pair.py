"""A blue/green pair whose rows go to a database that a test gives."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Protocol

from streams import App, Json, Text
from tests.support.pair import SETTINGS, Pair

if TYPE_CHECKING:
    from streams.connectors.sink import SinkConnector
    from streams.runtime.worker import Worker


class Target(Protocol):
    """The database that rows go to; it has the tables ``orders``, ``blue`` and ``green``."""

    def sink(self, table: str) -> SinkConnector:
        """A sink that appends rows."""

    def rows(self, table: str) -> list[tuple[str, int]]:
        """Keys and numbers, in the order in which they were written."""


class TargetPair(Pair):
    """Blue and green write to the same table, or each to one of its own."""

    def __init__(self, target: Target, *, same: bool, **settings: Any) -> None:
        self.target = target
        self.tables = {name: "orders" if same else name for name in ("blue", "green")}
        self.sinks = {name: target.sink(table) for name, table in self.tables.items()}

        def make(name: str, **own: Any) -> App:
            app = App(name, **(SETTINGS | own))
            orders = app.stream("in", key=Text(), value=Json(dict[str, Any]))
            picked = orders.filter(lambda order: order["n"] % 3 > 0)
            picked.map(lambda order: {"key": order["key"], "n": order["n"]}).sink(
                self.sinks[name], value=Json(dict[str, Any])
            )
            return app

        self.workers: list[Worker] = []
        super().__init__(make, **settings)

    def make_worker(self, *arguments: Any, **options: Any) -> Worker:
        worker = super().make_worker(*arguments, **options)
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        """End everything, also what was killed while it started."""
        for place in list(self.alive):
            self.stop(*place)
        for worker in self.workers:
            vars(worker)["_sinks"].close()

    def kill(self, app: str, slot: int = 0) -> None:
        worker = self.alive[app, slot]
        super().kill(app, slot)
        # The connections of a process that is gone end: what was not committed is rolled back.
        vars(worker)["_sinks"].close()

    def there_and_back(self) -> None:
        """Switch three times under traffic."""
        self.start("blue")
        self.send(10)
        self.settle()
        self.start("green")
        self.settle()
        for app in ("green", "blue", "green"):
            self.send(20)
            self.turn(2)
            self.send(10)
            assert self.switch(app).emitter == app
        self.send(20)
        self.check()

    def check(self) -> None:
        self.finish()
        found: dict[str, list[int]] = defaultdict(list)
        for table in dict.fromkeys(self.tables.values()):
            for key, n in self.target.rows(table):
                found[key].append(n)
        if len(set(self.tables.values())) > 1:
            # Each table has its part of a key in order.
            for table in self.tables.values():
                own: dict[str, list[int]] = defaultdict(list)
                for key, n in self.target.rows(table):
                    own[key].append(n)
                assert own
                assert all(numbers == sorted(numbers) for numbers in own.values())
            found = {key: sorted(numbers) for key, numbers in found.items()}
        self.close()
        assert found == {key: [n for n in range(count) if n % 3] for key, count in self.sent.items()}
