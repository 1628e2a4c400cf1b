"""``streams dead-letters``: the dead letters of an app, and what to do about them."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import msgspec
import typer
from rich.table import Table

from streams.cli.apps import load_app
from streams.cli.letter_lines import (
    Error,
    Key,
    Message,
    Places,
    SelectionOptions,
    Since,
    Step,
    Topic,
    Until,
    Where,
    iso_time,
    letter_fields,
    letter_line,
    raw_fields,
)
from streams.cli.options import AsJson, Servers, Target, into_environment
from streams.cli.output import out, print_line, warn
from streams.errors import ConfigurationError, TopicError
from streams.registry_topics import connect_registry
from streams.replay.dead_letters.edit import edit_letter
from streams.replay.dead_letters.export import exported
from streams.replay.dead_letters.ledger import LetterState
from streams.replay.dead_letters.purge import purge_letters
from streams.replay.dead_letters.retry import order_retry, plan_retry, wait_for_outcomes
from streams.replay.dead_letters.rows import DeadLetters, Selection
from streams.runtime.retry_log import Result

if TYPE_CHECKING:
    from streams.replay.dead_letters.retry import RetryPlan
    from streams.replay.dead_letters.rows import LetterRow

dead_letters_cli = typer.Typer(
    help="List, show, edit, retry, export and purge an app's dead letters.", no_args_is_help=True
)

OPEN = (LetterState.OPEN, LetterState.WAITING)
SHOWN_REASONS = 5
"""How many different reasons for refusals a retry prints."""

Place = Annotated[
    str, typer.Argument(metavar="PARTITION:OFFSET", help="The dead letter, as `list` shows it.")
]
States = Annotated[
    list[LetterState] | None,
    typer.Option("--state", help="Only those in this state; repeatable. Default: open and waiting."),
]


@dataclass(slots=True)
class _Group:
    count: int = 0
    waiting: int = 0
    first: int = sys.maxsize
    last: int = 0
    tries: Counter[int] = field(default_factory=Counter)

    def add(self, row: LetterRow) -> None:
        self.count += 1
        self.waiting += row.state is LetterState.WAITING
        self.first, self.last = min(self.first, row.failed_at), max(self.last, row.failed_at)
        self.tries[row.history.tries] += 1


@dead_letters_cli.command("list")
def list_letters(
    target: Target,
    places: Places = None,
    *,
    step: Step = None,
    topic: Topic = None,
    exception: Error = None,
    message: Message = None,
    since: Since = None,
    until: Until = None,
    key: Key = None,
    where: Where = None,
    state: States = None,
    rows: Annotated[bool, typer.Option("--rows", help="One row for each, not one for each group.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after this number of rows.")] = None,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Count the dead letters of each step and error, or list them one by one."""
    letters = _open(target, bootstrap_servers)
    options = SelectionOptions(
        places=places,
        step=step,
        topic=topic,
        exception=exception,
        message=message,
        since=since,
        until=until,
        key=key,
        where=where,
    )
    selection = options.selection(letters, state or OPEN)
    if rows:
        _list_rows(letters, selection, limit, as_json=as_json)
        return
    groups: dict[tuple[str, str], _Group] = {}
    for row in letters.rows(selection):
        groups.setdefault((row.letter.step, row.exception), _Group()).add(row)
    ordered = sorted(groups.items(), key=lambda item: (-item[1].count, item[0]))
    if as_json:
        for (of_step, error), group in ordered:
            print_line(
                {
                    "step": of_step,
                    "exception": error,
                    "count": group.count,
                    "waiting": group.waiting,
                    "first": iso_time(group.first),
                    "last": iso_time(group.last),
                    "tries": {str(tries): count for tries, count in sorted(group.tries.items())},
                }
            )
        return
    table = Table("step", "exception", "count", "waiting", "most tries", "first failure", "last failure")
    for (of_step, error), group in ordered:
        table.add_row(
            of_step,
            error,
            f"{group.count:,}",
            f"{group.waiting:,}",
            str(max(group.tries)),
            iso_time(group.first),
            iso_time(group.last),
        )
    table.add_section()
    total = sum(group.count for group in groups.values())
    table.add_row("total", "", f"{total:,}", f"{sum(group.waiting for group in groups.values()):,}")
    out.print(table)


def _list_rows(letters: DeadLetters, selection: Selection, limit: int | None, *, as_json: bool) -> None:
    table = Table("id", "state", "tries", "step", "input record", "key", "error", "last failure")
    for count, row in enumerate(letters.rows(selection), 1):
        if as_json:
            print(letter_line(letters, row).decode())  # noqa: T201 - the output itself
        else:
            letter = row.letter
            shown = letter_fields(letters, row)
            table.add_row(
                letter.id.place,
                str(row.state),
                str(row.history.tries),
                letter.step,
                f"{letter.topic}-{letter.partition} offset {letter.offset}",
                click.unstyle(str(shown.get("key", shown.get("key_base64")))),
                f"{row.exception}: {row.message}"[:200],
                iso_time(row.failed_at),
            )
        if count == limit:
            break
    if not as_json:
        out.print(table)


@dead_letters_cli.command("show")
def show_letter(
    target: Target,
    place: Place,
    *,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Show one dead letter: its record, as its step reads it and as bytes, its error and its origin."""
    letters = _open(target, bootstrap_servers)
    row = _one(letters, place)
    fields = letter_fields(letters, row)
    if as_json:
        fields |= raw_fields(row)
        print(_line(fields))  # noqa: T201 - the output itself
        return
    table = Table(show_header=False)
    for name, value in fields.items():
        text = value if isinstance(value, str) else _line(value)
        table.add_row(name, click.unstyle(text))
    out.print(table)


@dead_letters_cli.command("edit")
def edit(
    target: Target,
    place: Place,
    *,
    value_file: Annotated[
        str | None, typer.Option("--value-file", metavar="FILE", help="The new value; - for standard input.")
    ] = None,
    key_file: Annotated[
        str | None, typer.Option("--key-file", metavar="FILE", help="The new key; - for standard input.")
    ] = None,
    bootstrap_servers: Servers = None,
) -> None:
    """Replace the value or key with which a dead letter is retried.

    Without a file, $EDITOR opens the value, if it is text. Nothing is stored unless the step can read it.
    """
    letters = _open(target, bootstrap_servers)
    row = _one(letters, place)
    record = row.record
    if value_file == key_file == "-":
        raise ConfigurationError("key and value cannot both come from standard input")
    key, value = record.key, record.value
    if value_file is None and key_file is None:
        value = _in_editor(value)
        if value is None:
            out.print("not changed")
            return
    if value_file is not None:
        value = _file(value_file)
    if key_file is not None:
        key = _file(key_file)
    edit_letter(letters, row, key=key, value=value, at=_now())
    out.print(f"dead letter {place} is edited; retry it with: streams dead-letters retry {target} {place}")


@dead_letters_cli.command("retry")
def retry_letters(
    target: Target,
    places: Places = None,
    *,
    step: Step = None,
    topic: Topic = None,
    exception: Error = None,
    message: Message = None,
    since: Since = None,
    until: Until = None,
    key: Key = None,
    where: Where = None,
    only_if_newest: Annotated[
        bool,
        typer.Option("--only-if-newest", help="Leave out those for whose key there are later records."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="How long to wait for the results.")
    ] = 30.0,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Let the app's workers process dead letters again, each at the step that failed and exactly once.

    Other steps of its topic do not process it again. Records are retried in their original order. If no
    worker runs, they are retried when the app is started. The command may be repeated at any time.
    """
    letters = _open(target, bootstrap_servers)
    options = SelectionOptions(
        places=places,
        step=step,
        topic=topic,
        exception=exception,
        message=message,
        since=since,
        until=until,
        key=key,
        where=where,
    )
    plan = plan_retry(letters, options.selection(letters, OPEN), only_if_newest=only_if_newest)
    _warn_about(plan)
    found: Counter[Result] = Counter()
    if not dry_run:
        ordered = order_retry(letters, plan, _now())
        if ordered and not as_json:
            out.print(f"requested: {len(ordered):,}")
        found = wait_for_outcomes(letters, ordered, wait)
    counts = {
        "ready": len(plan.ready),
        "waiting": plan.waiting,
        "refused": len(plan.refused),
        "newer": len(plan.newer),
        "skipped": plan.skipped,
    }
    if as_json:
        results = {} if dry_run else {str(result): found[result] for result in Result}
        print_line(counts | ({"results": results} if results else {}))
        return
    if dry_run:
        out.print(f"{len(plan.ready):,} dead letters would be retried")
        return
    out.print(
        f"processed: {found[Result.DONE]:,}, failed again: {found[Result.FAILED]:,}, "
        f"refused by workers: {found[Result.REFUSED]:,}"
    )
    left = len(plan.ready) - found.total()
    if left:
        out.print(
            f"{left:,} are waiting: they are retried as soon as workers of the app hold their partitions; "
            "see streams dead-letters list"
        )


def _warn_about(plan: RetryPlan) -> None:
    if plan.waiting:
        warn(f"{plan.waiting:,} are being retried already")
    reasons = Counter(reason for _, reason in plan.refused)
    for reason, count in reasons.most_common(SHOWN_REASONS):
        warn(f"{count:,} cannot be retried: {reason}")
    if len(reasons) > SHOWN_REASONS:
        warn(f"{len(reasons) - SHOWN_REASONS:,} more reasons")
    if plan.newer:
        warn(
            f"{len(plan.newer):,} have later records of their key in their topic, which are processed before "
            "them: --only-if-newest leaves them out"
        )
    if plan.skipped:
        warn(f"{plan.skipped:,} are left out, as there are later records of their key")


@dead_letters_cli.command("export")
def export_letters(
    target: Target,
    places: Places = None,
    *,
    step: Step = None,
    topic: Topic = None,
    exception: Error = None,
    message: Message = None,
    since: Since = None,
    until: Until = None,
    key: Key = None,
    where: Where = None,
    state: States = None,
    bootstrap_servers: Servers = None,
) -> None:
    """Print dead letters as lines of JSON with everything that is known of them; bytes are in base64."""
    letters = _open(target, bootstrap_servers)
    options = SelectionOptions(
        places=places,
        step=step,
        topic=topic,
        exception=exception,
        message=message,
        since=since,
        until=until,
        key=key,
        where=where,
    )
    for row in letters.rows(options.selection(letters, state or OPEN)):
        print(exported(row).decode())  # noqa: T201 - the output itself


@dead_letters_cli.command("purge")
def purge(
    target: Target,
    places: Places = None,
    *,
    step: Step = None,
    topic: Topic = None,
    exception: Error = None,
    message: Message = None,
    since: Since = None,
    until: Until = None,
    key: Key = None,
    where: Where = None,
    state: Annotated[
        list[LetterState] | None,
        typer.Option("--state", help="Only those in this state; repeatable. Default: open."),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Needed if nothing restricts the selection.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    bootstrap_servers: Servers = None,
    as_json: AsJson = False,
) -> None:
    """Discard dead letters: they are not listed, and can no longer be retried.

    Those that are being retried are kept. Their records are deleted from the topic as far as only discarded
    ones are at its beginning; others expire with the topic's retention.
    """
    letters = _open(target, bootstrap_servers)
    options = SelectionOptions(
        places=places,
        step=step,
        topic=topic,
        exception=exception,
        message=message,
        since=since,
        until=until,
        key=key,
        where=where,
    )
    if not options and not state and not everything:
        raise ConfigurationError(
            "nothing says which dead letters to discard", hint="select some, or give --all"
        )
    selection = options.selection(letters, state or (LetterState.OPEN,))
    result = purge_letters(letters, selection, at=_now(), dry_run=True)
    if not dry_run:
        if not yes and result.letters:
            typer.confirm(f"discard {result.letters:,} dead letters?", abort=True)
        result = purge_letters(letters, selection, at=_now())
    if as_json:
        print_line({"letters": result.letters, "waiting": result.waiting, "deleted": result.deleted})
        return
    verb = "would be discarded" if dry_run else "discarded"
    out.print(f"{result.letters:,} dead letters {verb}; {result.deleted:,} offsets deleted from the topic")
    if result.waiting:
        warn(f"{result.waiting:,} are being retried, and kept")


def _open(target: str, bootstrap_servers: str | None) -> DeadLetters:
    if bootstrap_servers is not None:
        into_environment([f"bootstrap_servers={bootstrap_servers}"])
    app = load_app(target)
    topology = None
    if app.settings.schema_registry_url is not None:
        topology = connect_registry(app.topology, app.settings).topology
    return DeadLetters(app, app.broker(), topology)


def _one(letters: DeadLetters, place: str) -> LetterRow:
    """The dead letter at that place. Raises ``TopicError``."""
    found = list(letters.rows(Selection(states=tuple(LetterState), places=(place,))))
    if not found:
        raise TopicError(
            f"{letters.topic} has no dead letter {place} of app {letters.app.name!r}",
            hint="list them with: streams dead-letters list … --rows",
        )
    return found[0]


def _file(name: str) -> bytes:
    return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()


def _in_editor(value: bytes | None) -> bytes | None:
    """The value as edited; ``None`` if it was left as it is."""
    try:
        text = (value or b"").decode()
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            "the value is not text", hint="give the new one in a file: --value-file FILE"
        ) from error
    edited = click.edit(text, require_save=True)
    if edited is None:
        return None
    if not text.endswith("\n"):
        # Editors end the last line.
        edited = edited.removesuffix("\n")
    return None if edited == text else edited.encode()


def _now() -> int:
    return time.time_ns() // 1_000_000


def _line(value: object) -> str:
    return msgspec.json.encode(value, enc_hook=str).decode()
