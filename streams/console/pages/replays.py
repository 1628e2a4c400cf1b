"""Replays: ranges that were processed again, comparisons of programs, resets, and switches to a version."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from starlette.exceptions import HTTPException

from streams.console.moments import parse_point
from streams.console.page import Page
from streams.console.replay_reading import (
    Pair,
    Plan,
    Replays,
    pairs_of,
    plan_of_reset,
    plan_run,
    ranges,
    read_pair,
    read_replays,
)
from streams.console.worker_figures import worker_figures
from streams.errors import ConfigurationError
from streams.replay.diff.fields import ABSENT
from streams.runtime.switch_topic import SwitchPhase

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from streams.console.app_snapshot import AppSnapshot
    from streams.console.console import Console
    from streams.console.lookups import Lookup

REPLAYS_SECONDS: Final = 5.0
SWITCH_SECONDS: Final = 3.0
SWITCHING_SECONDS: Final = 0.5
"""How long what is known of a switch is shown, and while one is being made."""

PLAN_SECONDS: Final = 300.0
SHOWN_RUNS: Final = 100
SHOWN_PARTITIONS: Final = 200
SHOWN_TOPICS: Final = 100
SHOWN_FIELDS: Final = 30

POSITION_HINT: Final = "earliest, latest, 2026-11-30T08:00Z, -2h, or milliseconds since the epoch"

_SAFE: Final = re.compile(r"[A-Za-z0-9_.:/@%+=,-]+")


class Change(NamedTuple):
    """A field that differs, as text."""

    path: str
    old: str
    new: str


class Example(NamedTuple):
    """A record that differs."""

    kind: str
    key: str
    when: str
    changes: Sequence[Change]


class TopicRow(NamedTuple):
    """How the results of a topic differ."""

    topic: str
    fields: Mapping[str, Any]
    equal: float
    """Its share, in percent; so are the others."""
    changed: float
    other: float
    examples: Sequence[Example]

    @property
    def differences(self) -> int:
        """How many records differ."""
        return int(self.fields["changed"] + self.fields["added"] + self.fields["missing"])


def routes(console: Console) -> Sequence[Route]:
    """The routes of the page."""

    def replays(request: Request) -> Response:
        app = console.app(request)
        looked, pair = _replays(console, app), _pair(console, app)
        figures = worker_figures(console, app)
        return console.render(
            request,
            "replays.html",
            page="replays",
            title="Replays",
            app=app,
            looked=looked,
            pair=pair,
            phases=[phase.value for phase in SwitchPhase],
            muted=_muted(figures.value or {}),
            shown=SHOWN_RUNS,
        )

    def run(request: Request) -> Response:
        app = console.app(request)
        name = request.path_params["name"]
        looked = _replays(console, app)
        found = None if looked.value is None else next((i for i in looked.value.runs if i.name == name), None)
        if found is None and looked.value is not None:
            raise HTTPException(404, f"app {app.name!r} has no replay of the name {name!r}")
        return console.render(
            request,
            "replay.html",
            page="replays",
            title=f"Replay {name}",
            app=app,
            name=name,
            looked=looked,
            run=found,
            shown=SHOWN_PARTITIONS,
        )

    def comparison(request: Request) -> Response:
        app = console.app(request)
        name = request.path_params["name"]
        looked = _replays(console, app)
        found = None
        if looked.value is not None:
            found = next((item for item in looked.value.comparisons if item.name == name), None)
            if found is None:
                raise HTTPException(404, f"app {app.name!r} has no comparison of the name {name!r}")
        topics = [] if found is None else [_topic(console, fields) for fields in found.topics]
        topics.sort(key=lambda row: (-row.differences, row.topic))
        return console.render(
            request,
            "comparison.html",
            page="replays",
            title=f"Comparison {name}",
            app=app,
            name=name,
            looked=looked,
            found=found,
            different=[row for row in topics if row.differences],
            same=[row for row in topics if not row.differences],
            shown_topics=SHOWN_TOPICS,
            shown_fields=SHOWN_FIELDS,
        )

    def plan(request: Request) -> Response:
        app = console.app(request)
        query = request.query_params
        kind = "reset" if query.get("kind") == "reset" else "run"
        fields = {name: query.get(name, "").strip() for name in ("from", "to", "as", "warmup")}
        problem, looked = "", None
        if fields["from"]:
            try:
                looked = _plan(console, app, kind, fields)
            except ConfigurationError as error:
                problem = str(error)
        rows = [] if looked is None or looked.value is None else ranges(looked.value)
        return console.render(
            request,
            "replay_plan.html",
            page="replays",
            title="Plan",
            app=app,
            kind=kind,
            fields=fields,
            problem=problem,
            looked=looked,
            rows=rows[:SHOWN_PARTITIONS],
            more=max(0, len(rows) - SHOWN_PARTITIONS),
            command=_command(kind, fields),
            hint=POSITION_HINT,
            live=False if looked is None else looked.pending,
        )

    return [
        console.get("/apps/{app}/replays", replays),
        console.get("/apps/{app}/replays/plan", plan),
        console.get("/apps/{app}/replays/runs/{name}", run),
        console.get("/apps/{app}/replays/comparisons/{name}", comparison),
    ]


def _replays(console: Console, app: AppSnapshot) -> Lookup[Replays]:
    broker = console.collector.broker
    return console.lookups.get(
        ("replays", app.name), lambda: read_replays(broker, app.name, app.program), keep=REPLAYS_SECONDS
    )


def _pair(console: Console, app: AppSnapshot) -> Lookup[Pair | None] | None:
    """The app's pair, if it may belong to one."""
    broker, names = console.collector.broker, pairs_of(app.program, console.cluster.topics)
    if not names:
        return None

    def look() -> Pair | None:
        return read_pair(broker, app.name, names)

    found = console.lookups.get(("pair", app.name), look, keep=SWITCH_SECONDS)
    if found.value is not None and found.value.record.active:
        return console.lookups.get(("pair", app.name), look, keep=SWITCHING_SECONDS)
    return found


def _plan(console: Console, app: AppSnapshot, kind: str, fields: Mapping[str, str]) -> Lookup[Plan]:
    """Raises ``ConfigurationError`` for positions that cannot be read."""
    broker, program = console.collector.broker, app.program
    if program is None:
        raise ConfigurationError("the console does not have this app's program, which a plan is made of")
    begin, end = parse_point(fields["from"]), parse_point(fields["to"])

    def make() -> Plan:
        assert program is not None, "it is checked above"
        if kind == "reset":
            return plan_of_reset(broker, program, begin)
        return plan_run(broker, program, fields["as"] or "plan", begin, end, fields["warmup"])

    what = ("replay-plan", app.name, kind, *fields.values())
    return console.lookups.get(what, make, keep=PLAN_SECONDS)


def _command(kind: str, fields: Mapping[str, str]) -> str:
    """The command that does what is planned."""
    if kind == "reset":
        return f"streams replay reset MODULE:APP --to {_quoted(fields['from'])}"
    words = ["streams replay run MODULE:APP --from", _quoted(fields["from"])]
    for option, name in (("--to", "to"), ("--warmup", "warmup")):
        if fields[name]:
            words += [option, _quoted(fields[name])]
    return " ".join([*words, "--as", _quoted(fields["as"] or "NAME")])


def _quoted(text: str) -> str:
    return text if _SAFE.fullmatch(text) else "'" + text.replace("'", "'\\''") + "'"


def _muted(figures: Mapping[str, Any]) -> list[tuple[str, bool, bool]]:
    """Workers of an app of a pair: whether results are dropped, and whether input is held back."""
    return [
        (
            worker,
            bool(scrape.total("streams_muted")),
            bool(scrape.total("streams_stopped_for_switch")),
        )
        for worker, scrape in sorted(figures.items())
        if scrape is not None and "streams_muted" in scrape.samples
    ]


def _topic(console: Console, fields: Mapping[str, Any]) -> TopicRow:
    counts = [fields["equal"], fields["changed"], fields["added"] + fields["missing"]]
    total = max(1, sum(counts))
    equal, changed, other = (round(100 * count / total, 2) for count in counts)
    examples = [_example(console.values.field, sample) for sample in fields["samples"]]
    return TopicRow(fields["topic"], fields, equal, changed, other, examples)


def _example(shown: Callable[[str, Any], str], sample: Mapping[str, Any]) -> Example:
    def text(path: str, value: Any) -> str:
        return ABSENT if value == ABSENT else shown(path, value)

    changes = [
        Change(
            item["path"],
            "" if sample["kind"] == "added" else text(item["path"], item["old"]),
            "" if sample["kind"] == "missing" else text(item["path"], item["new"]),
        )
        for item in sample["fields"]
    ]
    return Example(sample["kind"], text("key", sample["key"]), sample["when"], changes)


REPLAYS: Final = Page("replays", "Replays", of_app=True, routes=routes)
