"""``streams trace``: from a result back to the input records that made it."""

from __future__ import annotations

import re
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape
from rich.tree import Tree

from streams.cli.apps import load_app
from streams.cli.options import Servers, Target, into_environment
from streams.cli.output import out, print_line
from streams.errors import ConfigurationError
from streams.registry_topics import connect_registry
from streams.replay.trace.entries import trace_entry
from streams.replay.trace.reader import RecordReader
from streams.replay.trace.search import search
from streams.replay.trace.tracer import Tracer

if TYPE_CHECKING:
    from streams.replay.trace.node import TraceNode

_WIDE = 1_000_000

_NUMBERS = re.compile(r"[0-9]{1,20}:[0-9]{1,20}")

_STYLES = {"input": "green", "gone": "red", "path": "dim", "candidate": "yellow"}


class TracedPlace(NamedTuple):
    """A record's coordinates."""

    topic: str
    partition: int
    offset: int


def trace(
    target: Target,
    place: Annotated[
        str | None,
        typer.Argument(
            metavar="[TOPIC:PARTITION:OFFSET]", help="A record of a topic that the app writes, or reads."
        ),
    ] = None,
    *,
    dead_letter: Annotated[
        str | None,
        typer.Option(metavar="PARTITION:OFFSET", help="A record of the app's dead-letter topic."),
    ] = None,
    store: Annotated[
        str | None, typer.Option(metavar="STORE", help="An entry of this store, as of the last commit.")
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Its key: text, or JSON for keys of other types.")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(metavar="START", help="Its window's start, in milliseconds; default: all windows."),
    ] = None,
    base64: Annotated[bool, typer.Option("--base64", help="The key is given as bytes in base64.")] = False,
    records: Annotated[
        int,
        typer.Option(
            "--search",
            metavar="RECORDS",
            min=0,
            max=1_000_000,
            help="If the record names no input records and its steps keep no state: process up to so many "
            "records of each input partition around its time, and show those that give the same record.",
        ),
    ] = 0,
    bootstrap_servers: Servers = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tree as one line of JSON.")] = False,
) -> None:
    """Show which input records made a result: a tree, with values as the app's serdes decode them.

    Results name their input records if the app has the setting lineage; without it, the tree has what the
    topology knows.
    """
    given = [item for item in (place, dead_letter, store) if item is not None]
    if len(given) != 1:
        raise ConfigurationError(
            "give one of TOPIC:PARTITION:OFFSET, --dead-letter and --store",
            hint="e.g. streams trace shop:app totals:0:42",
        )
    if (store is None) != (key is None):
        raise ConfigurationError("--store and --key belong together", hint="e.g. --store totals --key alice")
    if store is None and (window is not None or base64):
        raise ConfigurationError("--window and --base64 are for an entry of a --store")
    if records and place is None:
        raise ConfigurationError("--search is for a record of an output topic: TOPIC:PARTITION:OFFSET")
    wanted = None if place is None else parse_place(place)
    letter = None if dead_letter is None else parse_numbers(dead_letter)
    if bootstrap_servers is not None:
        into_environment([f"bootstrap_servers={bootstrap_servers}"])
    app = load_app(target)
    with ExitStack() as stack:
        topology = app.topology
        if app.settings.schema_registry_url is not None:
            topology = stack.enter_context(closing(connect_registry(topology, app.settings))).topology
        broker = app.broker()
        reader = stack.enter_context(closing(RecordReader(broker)))
        tracer = Tracer(app, reader, topology)
        if wanted is not None:
            tree = tracer.record(*wanted)
            if records:
                search(tracer, broker, tree, *wanted, records)
        elif letter is not None:
            tree = tracer.dead_letter(*letter)
        else:
            assert store is not None, "checked above"
            assert key is not None, "checked above"
            tree = trace_entry(tracer, broker, store, key, window, in_base64=base64)
    if as_json:
        print_line(tree.fields())
    else:
        # Lines of a file are not wrapped.
        (out if out.is_terminal else Console(width=_WIDE)).print(_drawn(tree))


def parse_place(text: str) -> TracedPlace:
    """Parse ``TOPIC:PARTITION:OFFSET``. Raises ``ConfigurationError``."""
    topic, _, numbers = text.partition(":")
    if not topic or not _NUMBERS.fullmatch(numbers):
        raise ConfigurationError(
            f"{text!r} is not a record's place", hint="write TOPIC:PARTITION:OFFSET, e.g. totals:0:42"
        )
    return TracedPlace(topic, *parse_numbers(numbers))


def parse_numbers(text: str) -> tuple[int, int]:
    """Parse ``PARTITION:OFFSET``. Raises ``ConfigurationError``."""
    if not _NUMBERS.fullmatch(text):
        raise ConfigurationError(
            f"{text!r} is not a record's place", hint="write PARTITION:OFFSET, e.g. 0:42"
        )
    partition, offset = map(int, text.split(":"))
    if partition >= 1 << 31 or offset >= 1 << 63:
        raise ConfigurationError(f"{text!r} has a number that no partition or offset can have")
    return partition, offset


def _drawn(node: TraceNode, tree: Tree | None = None) -> Tree:
    first, *others = node.lines()
    style = _STYLES.get(node.kind)
    label = f"[{style}]{escape(first)}[/]" if style else f"[bold]{escape(first)}[/]"
    label = "\n".join(
        [label, *(f"[italic]{escape(o)}[/]" if o.startswith("! ") else escape(o) for o in others)]
    )
    branch = Tree(label) if tree is None else tree.add(label)
    for child in node.children:
        _drawn(child, branch)
    return branch
