"""The README's programs do what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from streams.testing import TopologyDriver

README = (Path(__file__).parents[1] / "README.md").read_text()


def programs() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_first_app_and_its_test_run_as_printed():
    app, *_, test = programs()
    namespace: dict[str, object] = {}
    exec(app, namespace)
    exec(test, namespace)
    driver = namespace["driver"]
    assert isinstance(driver, TopologyDriver)
    assert driver.topics == []


def test_the_processor_example_runs_as_printed():
    first, *_, processor, _ = programs()
    namespace: dict[str, object] = {}
    exec(first, namespace)
    exec(processor, namespace)
    driver = TopologyDriver(namespace["app"])  # type: ignore[arg-type]  # made by the text above
    for value in (1, 1, 2):
        driver.send("readings", value)
    assert driver.values("changes") == [1, 2]


def test_the_aggregating_app_runs_as_printed():
    namespace: dict[str, Any] = {}
    exec(programs()[1], namespace)
    driver = TopologyDriver(namespace["app"])
    for time, path in ((0, "/"), (1000, "/"), (2000, "/cart"), (200_000, "/")):
        driver.send("hits", namespace["Hit"](path, 10, 1.0), timestamp=time)
    assert driver.values("hit-counts") == [1, 2, 1, 3]
    results = [(window.key, window.start, window.value["bytes"]) for window in driver.values("traffic")]
    assert results == [("/", 0, 20), ("/cart", 0, 10)]


def test_the_first_app_fits_on_the_first_screen():
    assert README.index('App("alerts")') < README.index("## Contents")
    assert len(programs()[0].strip().splitlines()) <= 15


def test_every_setting_is_in_the_table():
    from streams.config import Settings  # noqa: PLC0415 - only this test needs it

    table = README[README.index("## Settings") : README.index("## Watching")]
    assert {name for name in Settings.__struct_fields__ if f"`{name}`" not in table} == set()
