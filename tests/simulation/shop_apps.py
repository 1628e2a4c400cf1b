"""Small apps whose replays are simulated, and their input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams import App, Text, Tumbling
from streams.simulation.run import InputRecord

if TYPE_CHECKING:
    from streams.simulation import Simulator
    from streams.simulation.simulator import Report

SALES = [InputRecord(b"k%d" % (n % 4), b"%d" % n, 1_000 * n) for n in range(40)]
NAMES = [InputRecord(b"k%d" % (n % 4), b"name%d" % n, 9_000 * n) for n in range(8)]
INPUT = {"sales": SALES, "names": NAMES}


def shop(**settings: Any) -> App:
    app = App("shop", **settings)
    names = app.table("names", key=Text(), value=Text(), store="names")
    sales = app.stream("sales", key=Text(), value=Text())
    sales.join(names, lambda sale, name: f"{name} {sale}").to("named", value=Text())
    by_digit = sales.group_by(lambda sale: sale[-1], store="by-digit")
    by_digit.count("counts").to("counts")
    by_digit.window(Tumbling(seconds=10)).count("windows").final().to("final")
    return app


def copying(**settings: Any) -> App:
    app = App("copying", **settings)
    app.stream("sales", value=Text()).map(str.upper).to("copies", value=Text())
    return app


def last(simulator: Simulator, seeds: int) -> Report:
    *_, report = simulator.run(range(seeds))
    return report
