"""``streams dead-letters`` on a real broker, with workers as processes that run meanwhile."""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from streams.broker import NewTopic
from streams.broker.reading import read_to_end
from tests.integration.conftest import HERE, Copy
from tests.support.commands import Done, run_streams

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.kafka

SESSION = {"group_protocol": "classic", "session_timeout": 6, "transaction_timeout": 3}


class Letters(Copy):
    """The app whose records fail, and the command."""

    name = "letters"

    def __init__(self, servers: str, prefix: str, folder: Path) -> None:
        super().__init__(servers, prefix, folder)
        self.copied, self.counts = f"{prefix}-copy", f"{prefix}-counts"
        names = (self.input, self.output, self.copied, self.counts)
        self._admin.create_topics(
            [NewTopic(name=name, partitions=4, settings={"retention.ms": "-1"}) for name in names]
        )

    def command(self, *arguments: str, stdin: bytes = b"") -> list[Any]:
        """Run ``streams dead-letters``, and return its lines of JSON."""
        verb, *rest = arguments
        done = self.run(verb, *rest, stdin=stdin)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def run(self, verb: str, *arguments: str, stdin: bytes = b"") -> Done:
        environment = {
            **os.environ,
            "LETTERS_PREFIX": self.prefix,
            "STREAMS_BOOTSTRAP_SERVERS": self.servers,
            **self.environment,
        }
        command = ("dead-letters", verb, "letters_app:app", *arguments)
        return run_streams(*command, folder=HERE, environment=environment, stdin=stdin)

    def latest_counts(self) -> dict[str, int]:
        self.wait_until_settled(self.counts)
        return {
            (key or b"").decode(): int(value or b"0")
            for fetched in read_to_end(self.broker, [self.counts])
            for key, value in zip(fetched.keys(), fetched.values(), strict=True)
        }

    def groups(self) -> dict[str, tuple[int, int]]:
        """How many dead letters each error has, and how many of them wait for a retry."""
        return {row["exception"]: (row["count"], row["waiting"]) for row in self.command("list", "--json")}


@pytest.fixture
def letters(kafka_bootstrap: str, prefix: str, tmp_path: Path) -> Iterator[Letters]:
    made = Letters(kafka_bootstrap, prefix, tmp_path)
    yield made
    made.end()


def values(kind: str, *numbers: int) -> list[str]:
    return [f"{kind}{number}" for number in range(*numbers)]


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
def test_the_fix_of_one_kind_is_retried_and_the_other_kind_stays(letters, guarantee):
    letters.environment["LETTERS_BROKEN"] = "a,b"
    letters.produce(
        [value for pair in zip(values("a", 500), values("b", 500), strict=True) for value in pair]
    )
    worker = letters.start(guarantee=guarantee)
    letters.wait_until_consumed()
    assert letters.groups() == {"ValueError": (500, 0), "KeyError": (500, 0)}
    assert worker.stop() == 0
    letters.environment["LETTERS_BROKEN"] = "b,a49"
    worker = letters.start(guarantee=guarantee)
    where = ("--where", "exception=ValueError")
    (dry,) = letters.command("retry", *where, "--dry-run", "--json")
    assert dry == {"ready": 500, "waiting": 0, "refused": 0, "newer": 0, "skipped": 0}
    assert letters.outputs() == Counter()
    (first,) = letters.command("retry", *where, "--json", "--wait", "60")
    # a49 and a490 to a499
    assert first["results"] == {"done": 489, "failed": 11, "refused": 0}
    (again,) = letters.command("retry", *where, "--json", "--wait", "60")
    assert again["results"] == {"done": 0, "failed": 11, "refused": 0}
    expected = Counter(value for value in values("a", 500) if not value.startswith("a49"))
    assert letters.outputs() == expected
    assert letters.outputs(letters.copied) == Counter([*values("a", 500), *values("b", 500)])
    letters.wait_until_consumed()
    letters.wait_for(lambda: letters.latest_counts() == {"a": 489}, 30, "counted once each")
    rows = letters.command("list", "--rows", "--json")
    assert Counter((row["exception"], row["tries"]) for row in rows) == {
        ("ValueError", 3): 11,
        ("KeyError", 1): 500,
    }
    assert worker.stop() == 0


def test_a_worker_killed_in_the_middle_of_a_retry_doubles_and_loses_nothing(letters):
    letters.environment["LETTERS_BROKEN"] = "a"
    letters.produce(values("a", 2000))
    settings: dict[str, Any] = SESSION | {"commit_interval": 0.2}
    worker = letters.start(**settings)
    letters.wait_until_consumed()
    assert worker.stop() == 0
    letters.environment |= {"LETTERS_BROKEN": "", "LETTERS_SLOW_SECONDS": "0.002"}
    # Ordered while nothing runs, and twice.
    letters.command("retry", "--json", "--wait", "0")
    (again,) = letters.command("retry", "--json", "--wait", "0")
    assert (again["ready"], again["waiting"]) == (0, 2000)
    workers = [letters.start(**settings) for _ in range(2)]
    letters.wait_for(
        lambda: any(worker.events("dead letters retried") for worker in workers), 60, "under way"
    )
    workers[0].kill()
    letters.wait_for(lambda: not letters.groups(), 90, "all retried", letters.groups)
    assert letters.outputs() == Counter(values("a", 2000))
    letters.wait_until_consumed()
    letters.wait_for(lambda: letters.latest_counts() == {"a": 2000}, 30, "counted once each")
    assert workers[1].stop() == 0


def test_a_letter_is_shown_edited_retried_exported_and_purged(letters):
    letters.environment["LETTERS_BROKEN"] = "a,b"
    letters.produce(["a1", "a2", "b1"])
    worker = letters.start()
    letters.wait_until_consumed()
    rows = {row["value"]: row for row in letters.command("list", "--rows", "--json")}
    place = rows["a1"]["id"]
    (shown,) = letters.command("show", place, "--json")
    assert shown["value"] == "a1"
    assert shown["value_base64"] == "YTE="
    assert (shown["step"], shown["message"], shown["tries"]) == ("work", "a is not supported", 1)
    assert shown["topic"] == letters.input
    refused = letters.run("edit", place, "--value-file", "-", stdin=b"\xff")
    assert refused.returncode != 0
    assert "cannot be read as Text" in refused.stderr
    letters.command("edit", place, "--value-file", "-", stdin=b"x1")
    exported = letters.command("export", "--exception", "ValueError")
    assert Counter(line["value"] for line in exported) == {"YTE=": 1, "YTI=": 1}
    assert [line["edit"]["value"] for line in exported if line["edit"]] == ["eDE="]
    (done,) = letters.command("retry", place, "--json", "--wait", "60")
    assert done["results"] == {"done": 1, "failed": 0, "refused": 0}
    assert letters.outputs() == Counter(["x1"])
    assert letters.outputs(letters.copied) == Counter(["a1", "a2", "b1"])
    nothing = letters.run("purge", "--yes")
    assert nothing.returncode != 0
    assert "give --all" in nothing.stderr
    (purged,) = letters.command("purge", "--exception", "KeyError", "--yes", "--json")
    assert (purged["letters"], purged["waiting"]) == (1, 0)
    assert letters.groups() == {"ValueError": (1, 0)}
    (purged,) = letters.command("purge", "--state", "open", "--state", "retried", "--yes", "--json")
    assert purged["letters"] == 2
    assert letters.groups() == {}
    assert not list(letters.outputs(letters.dead_letters))
    assert worker.stop() == 0
