"""Apps with jobs in replays: nothing is executed again, and what would be enqueued can be read."""

from __future__ import annotations

from typing import Any

import pytest

from streams import App, ConfigurationError, Record
from streams.replay.affected import find_affected
from streams.runtime.switching import check_pair
from streams.testing import replay

NOON = 1_800_000_000_000


def program() -> tuple[App, list[str]]:
    app = App("sold")
    done: list[str] = []

    @app.job(name="charge")
    def charge(order: str) -> None:
        done.append(order)

    app.stream("orders").enqueue(charge, lambda order: charge.call(order["id"]))
    return app, done


def test_a_bounded_run_executes_nothing_and_shows_what_it_would_enqueue() -> None:
    app, done = program()
    records: dict[str, list[Record[Any, Any]]] = {
        "orders": [Record(None, {"id": "a"}, NOON)],
        "sold-jobs": [Record(None, {"job": "charge", "arguments": {"order": "b"}}, NOON)],
    }
    results = replay(app, records)
    assert done == []
    assert results.topics == ["sold-jobs"]
    assert [record.value for record in results.read("sold-jobs")] == [
        b'{"job":"charge","arguments":{"order":"a"}}'
    ]
    assert any("jobs are not executed" in note for note in results.report["differences"])


def test_a_reset_leaves_the_queue_and_its_store_alone() -> None:
    app, _ = program()
    found = find_affected(app.topology, ["orders", "sold-jobs"], "sold")
    assert found.selected == ("orders",)
    assert found.stores == found.changelogs == ()
    assert found.outputs == ("sold-jobs",)
    with pytest.raises(ConfigurationError, match="queue of jobs, which is not reset"):
        find_affected(app.topology, ["orders", "sold-jobs"], "sold", ["sold-jobs"])


def test_an_app_with_jobs_cannot_belong_to_a_pair() -> None:
    app, _ = program()
    with pytest.raises(ConfigurationError, match="declare the jobs in an app of its own"):
        check_pair(app.topology)
