"""A shadow: a new program over the old input beside production, compared with the old program."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from streams import lineage
from streams.replay.bounded.phase import sink_rows
from streams.replay.bounded.run import BoundedRun
from streams.replay.diff.forwarding import forwarded_at_commits
from streams.replay.diff.result import Diff
from streams.replay.diff.topic import Serdes, Side, diff_topic
from streams.replay.plain_values import PlainValues
from streams.runtime.dead_letter_rows import LINEAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streams.app import App
    from streams.broker import Broker
    from streams.config import Settings
    from streams.replay.bounded.plan import RunPlan
    from streams.replay.bounded.run import RunReport, RunRequest
    from streams.replay.diff.fields import Rules
    from streams.replay.diff.result import TopicDiff

DEAD_LETTERS: Final = "dead letters"
"""What stands for the dead-letter topics of both programs, which may have different names."""

LEFT_OUT: Final = frozenset({"__streams.errors.application", lineage.HEADER, LINEAGE})
"""Headers that differ between programs of different names or settings."""


@dataclass(frozen=True, slots=True)
class Program:
    """One of the programs. ``load`` makes the app in other processes; ``settings`` replace the app's."""

    app: App
    load: Callable[[], App] | None = None
    settings: Settings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowReport:
    """What both programs have done, and how their results differ."""

    old: RunReport
    new: RunReport
    diff: Diff

    def as_fields(self) -> dict[str, Any]:
        """As plain data."""
        return {"old": self.old.fields(), "new": self.new.fields(), **self.diff.as_fields()}


class _Done(NamedTuple):
    run: str
    plan: RunPlan
    report: RunReport


class Shadow:
    """Runs the old program twice and the new one once over the same range, and compares their results.

    Nothing is written to Kafka, and rows for sink connectors are compared instead of delivered. What differs
    between the two runs of the old program is noise, such as random numbers and the time: fields in it are
    not compared with the new program's. ``request`` has the range; its name is not used.
    """

    def __init__(
        self,
        new: Program,
        old: Program,
        request: RunRequest,
        *,
        rules: Rules,
        broker: Broker | None = None,
        folder: Path | None = None,
    ) -> None:
        self._new = new
        self._old = old
        self._request = replace(request, kind="shadow", effects=False)
        self._rules = rules
        self._broker = broker
        self._folder = folder

    def run(self, progress: Callable[[str, int, int], None] = lambda _, __, ___: None) -> ShadowReport:
        """Run and compare. ``progress`` gets what is running, the records read and how many there are."""
        with tempfile.TemporaryDirectory(prefix="streams-shadow-", dir=self._folder) as folder:
            return self._run(Path(folder), progress)

    def _run(self, folder: Path, progress: Callable[[str, int, int], None]) -> ShadowReport:
        old = self._process(self._old, "old program", folder, self._request, progress)
        # All three read the same records, although more arrive meanwhile.
        request = replace(self._request, pinned=old.plan.bounds.partitions)
        again = self._process(self._old, "old program again", folder, request, progress)
        new = self._process(self._new, "new program", folder, request, progress)
        noise = list(self._compared(old, again, folder / "noise", {}))
        noisy = {topic.topic: frozenset(topic.changed_fields) for topic in noise}
        topics = list(self._compared(old, new, folder / "difference", noisy))
        return ShadowReport(old=old.report, new=new.report, diff=Diff(topics=topics, noise=noise))

    def _process(
        self,
        program: Program,
        what: str,
        folder: Path,
        request: RunRequest,
        progress: Callable[[str, int, int], None],
    ) -> _Done:
        run = BoundedRun(
            program.app,
            replace(request, name=what.replace(" ", "-")),
            broker=self._broker,
            load=program.load,
            folder=folder,
            settings=program.settings,
        )
        plan = run.plan()
        total = plan.bounds.records
        return _Done(what, plan, run.process(plan, lambda done: progress(what, done, total)))

    def _compared(
        self, old: _Done, new: _Done, folder: Path, noisy: dict[str, frozenset[str]]
    ) -> Iterator[TopicDiff]:
        old_app = self._old.app
        new_app = self._new.app if new.run == "new program" else old_app
        old_names, new_names = _names(old_app, old.plan), _names(new_app, new.plan)
        last = forwarded_at_commits(old_app.topology) | forwarded_at_commits(new_app.topology)
        for number, label in enumerate(dict.fromkeys([*old_names, *new_names])):
            rules = replace(self._rules, ignore=self._rules.ignore | noisy.get(label, frozenset()))
            yield diff_topic(
                label,
                _side(old_app, old, old_names.get(label)),
                _side(new_app, new, new_names.get(label)),
                last=label in last,
                rules=rules,
                folder=folder / str(number),
                left_out=LEFT_OUT,
            )


def _names(app: App, plan: RunPlan) -> dict[str, str]:
    """The topics with results, by what they are called in the comparison."""
    declared = [topic for topic in app.topology.output_topics if topic not in app.topology.repartitions]
    return {
        DEAD_LETTERS if topic == app.dead_letter_topic else topic: topic
        for topic in dict.fromkeys([*declared, *plan.spool.topics])
    }


def _side(app: App, done: _Done, topic: str | None) -> Side:
    if topic is None:
        return Side((), 0, Serdes(None, None))
    return Side(
        done.plan.spool.read_results(topic),
        done.report.counts.results[topic],
        _serdes(app, topic),
    )


def _serdes(app: App, topic: str) -> Serdes:
    if topic in {sink_rows(sink.store) for sink in app.topology.sink_connectors}:
        return Serdes(PlainValues(), PlainValues())
    for sink in app.topology.sinks:
        if topic in sink.topics:
            return Serdes(sink.key, sink.value)
    chosen = [sink for sink in app.topology.sinks if not isinstance(sink.topic, str)]
    if len(chosen) == 1 and topic != app.dead_letter_topic:
        return Serdes(chosen[0].key, chosen[0].value)
    return Serdes(None, None)
