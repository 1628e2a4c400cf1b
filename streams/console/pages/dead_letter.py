"""One dead letter: what it was, why its step could not process it, and what is done about it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from starlette.exceptions import HTTPException

from streams.console.console import Planned
from streams.console.json_position import position_in
from streams.console.letter_access import LOOKUP_OF_ONE
from streams.console.letter_edit import Editable, editable, edited
from streams.console.record_parts import Part, header_texts, hex_lines, key_part, value_part
from streams.errors import ConfigurationError
from streams.replay.dead_letters.edit import check_edit, edit_letter
from streams.replay.dead_letters.ledger import LetterState
from streams.replay.dead_letters.purge import purge_letters
from streams.replay.dead_letters.retry import order_retry, plan_retry
from streams.replay.dead_letters.rows import LetterRow, Selection
from streams.runtime.retry_log import Edit, Result, RetryOutcome, RetryRequest
from streams.runtime.retry_path import letter_refusal
from streams.topology.topic_format import TopicFormat

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from streams.console.app_snapshot import AppSnapshot
    from streams.console.console import Console
    from streams.console.json_position import Position
    from streams.console.letter_access import LetterAccess
    from streams.runtime.retry_log import Entry
    from streams.serde import Serde

PATH: Final = "/apps/{app}/dead-letters/{partition:int}/{offset:int}"
LONGEST: Final = 100_000
"""Characters of a value that the page shows."""

MOST_ENTRIES: Final = 50


class LetterView(NamedTuple):
    """A dead letter as its page shows it."""

    row: LetterRow
    key: Part
    value: Part
    key_bytes: str
    value_bytes: str
    """What is in them, in hexadecimal; empty if it may not be shown."""
    headers: Sequence[tuple[str, str]]
    history: Sequence[tuple[int, str, str]]
    """Times, what happened, and its details, the oldest first."""
    refusal: str
    """Why it cannot be retried; empty if it can."""
    serdes: tuple[Serde[Any] | None, Serde[Any] | None]


class Attempt(NamedTuple):
    """What was sent to edit a dead letter, and why it was refused."""

    key: Editable
    value: Editable
    error: str
    position: Position | None


def letter_routes(console: Console, access: LetterAccess) -> Sequence[Route]:
    """The routes of one dead letter."""

    def show(request: Request) -> Response:
        app = console.app(request)
        partition, offset = _place(request)
        latest, _ = access.look(app)
        found = console.lookups.get(
            # Read again when anything has happened to any of them.
            (LOOKUP_OF_ONE, app.name, partition, offset, None if latest is None else latest.version),
            lambda: read_view(console, access, app, partition, offset),
            keep=10.0,
        )
        if found.done and not found.error and found.value is None:
            raise HTTPException(
                404,
                f"{access.topic(app)} has no dead letter {partition}:{offset} of app {app.name!r} (any more)",
            )
        return _render(console, request, app, found.value, error=found.error)

    def edit(request: Request, form: Mapping[str, str]) -> Planned | Response:
        app, view = _required(console, access, request)
        row = view.row
        letters = access.library(app)
        key = _sent(form, "key", editable(view.key, row.record.key))
        value = _sent(form, "value", editable(view.value, row.record.value))
        part = "key"
        try:
            new_key = edited(console.values, view.serdes[0], view.key, row.record.key, key)
            part = "value"
            new_value = edited(console.values, view.serdes[1], view.value, row.record.value, value)
            part = ""
            check_edit(letters, row, key=new_key, value=new_value)
        except ConfigurationError as error:
            message = f"{part}: {error.message}" if part else error.message
            text = key.text if message.startswith(("key", "the key")) else value.text
            # Without what browsers add to the ends of lines: so it is read.
            position = position_in(text.replace("\r\n", "\n"), message)
            attempt = Attempt(key, value, message, position)
            return _render(console, request, app, view, attempt=attempt, status=422)
        retried = form.get("then") == "retry"

        def run() -> str:
            try:
                edit_letter(letters, row, key=new_key, value=new_value, at=_now())
                if retried:
                    return f"edited, and {_retry(letters, row)}"
            finally:
                access.forget(app)
            return "edited: nothing is processed before it is retried"

        return _planned(app, row, {"then": "retry"} if retried else {}, run)

    def retry(request: Request, form: Mapping[str, str]) -> Planned:  # noqa: ARG001 - it has no fields
        app, view = _required(console, access, request)
        letters = access.library(app)

        def run() -> str:
            try:
                return _retry(letters, view.row)
            finally:
                access.forget(app)

        return _planned(app, view.row, {}, run)

    def purge(request: Request, form: Mapping[str, str]) -> Planned:  # noqa: ARG001 - as above
        app, view = _required(console, access, request)
        letters = access.library(app)
        if view.row.state not in (LetterState.OPEN, LetterState.RETRIED):
            raise ConfigurationError(f"it is {view.row.state}, and cannot be discarded")
        place = view.row.letter.id.place

        def run() -> str:
            try:
                purge_letters(letters, Selection(states=tuple(LetterState), places=(place,)), at=_now())
            finally:
                access.forget(app)
            return f"dead letter {place} is discarded"

        planned = _planned(app, view.row, {}, run)
        # Its record may be deleted with that.
        return planned._replace(location=f"/apps/{app.name}/dead-letters")

    return [
        console.get(PATH, show),
        console.post(f"{PATH}/edit", "edit a dead letter", edit),
        console.post(f"{PATH}/retry", "retry a dead letter", retry),
        console.post(f"{PATH}/purge", "purge a dead letter", purge),
    ]


def read_view(
    console: Console, access: LetterAccess, app: AppSnapshot, partition: int, offset: int
) -> LetterView | None:
    """Read a dead letter and what happened to it; ``None`` if it is not there. Raises ``StreamsError``."""
    index = access.index(app)
    row = index.row(partition, offset)
    if row is None:
        return None
    letter, record = row.letter, row.record
    made_of_state = letter.is_result and letter.via is None
    form = TopicFormat() if made_of_state else access.form(app)(letter.source.topic)
    values = console.values
    key = key_part(values, form, record.key, None)
    value = value_part(values, form, record.key, record.value, None)
    refusal = ""
    if app.program is not None:
        topology = access.programs.topology(app.program)
        refusal = letter_refusal(topology, letter, edited=row.history.edit is not None) or ""
    return LetterView(
        row,
        key,
        value,
        "" if key.payload is None else hex_lines(key.payload),
        "" if value.payload is None else hex_lines(value.payload),
        header_texts(values, record.headers),
        [
            (letter.written, "failed", f"{letter.exception}: {letter.message}"),
            *(_event(written, entry) for written, entry in index.entries(letter.id)[-MOST_ENTRIES:]),
        ],
        refusal,
        (form.key, form.value),
    )


def _event(written: int, entry: Entry) -> tuple[int, str, str]:
    if isinstance(entry, RetryRequest):
        return written, "retry requested", f"number {entry.number}, in partition {entry.partition}"
    if isinstance(entry, Edit):
        return entry.at, "edited", ""
    if isinstance(entry, RetryOutcome):
        what = {
            Result.DONE: "processed",
            Result.FAILED: "failed again",
            Result.REFUSED: "refused by the worker",
        }
        error = f"{entry.exception}: {entry.message}" if entry.exception else entry.message
        return entry.at, what[entry.result], error
    return entry.at, "discarded", ""


def _retry(letters: Any, row: LetterRow) -> str:
    """Request the retry of one dead letter. Raises ``ConfigurationError`` if it is not possible."""
    place = row.letter.id.place
    selection = Selection(states=(LetterState.OPEN, LetterState.WAITING), places=(place,))
    plan = plan_retry(letters, selection, look_for_newer=False)
    if plan.waiting:
        return "it is being retried already"
    if plan.refused:
        raise ConfigurationError(f"it cannot be retried: {plan.refused[0][1]}")
    if not plan.ready:
        raise ConfigurationError("it is not open any more: nothing was retried")
    order_retry(letters, plan, _now())
    return "retry requested: a worker processes it now"


def _required(console: Console, access: LetterAccess, request: Request) -> tuple[AppSnapshot, LetterView]:
    """The dead letter of an action, as it is now."""
    app = console.app(request)
    partition, offset = _place(request)
    view = read_view(console, access, app, partition, offset)
    if view is None:
        raise HTTPException(404, f"there is no dead letter {partition}:{offset} of app {app.name!r}")
    return app, view


def _place(request: Request) -> tuple[int, int]:
    partition, offset = request.path_params["partition"], request.path_params["offset"]
    if partition >= 2**31 or offset >= 2**63:
        raise HTTPException(404, "there is no such offset")
    return partition, offset


def _sent(form: Mapping[str, str], part: str, shown: Editable) -> Editable:
    """What a form has of a key or value, in the mode in which it was shown."""
    mode = form.get(f"{part}_mode", shown.mode)
    if mode not in (shown.mode, "text", "hex") or (shown.mode in ("masked", "none") and mode != shown.mode):
        raise ConfigurationError(f"a {part} cannot be edited as {mode!r}")
    return Editable(mode, form.get(part, ""), null=form.get(f"{part}_null") == "1")


def _render(
    console: Console,
    request: Request,
    app: AppSnapshot,
    view: LetterView | None,
    *,
    error: str = "",
    attempt: Attempt | None = None,
    status: int = 200,
) -> Response:
    partition, offset = _place(request)
    key = value = None
    if view is not None:
        key = attempt.key if attempt is not None else editable(view.key, view.row.record.key)
        value = attempt.value if attempt is not None else editable(view.value, view.row.record.value)
    return console.render(
        request,
        "dead_letter.html",
        page="dead-letters",
        title=f"Dead letter {partition}:{offset}",
        app=app,
        # What the user has written stays.
        live=attempt is None,
        status=status,
        partition=partition,
        offset=offset,
        view=view,
        error=error,
        attempt=attempt,
        key=key,
        value=value,
        longest=LONGEST,
    )


def _planned(app: AppSnapshot, row: LetterRow, details: Mapping[str, str], run: Callable[[], str]) -> Planned:
    letter = row.letter
    return Planned(
        app=app.name,
        target=f"dead letter {letter.id.place}",
        details={
            **details,
            "step": letter.step,
            "record": f"{letter.topic}-{letter.partition} offset {letter.offset}",
        },
        run=run,
        location=f"/apps/{app.name}/dead-letters/{letter.id.partition}/{letter.id.offset}",
    )


def _now() -> int:
    return time.time_ns() // 1_000_000
