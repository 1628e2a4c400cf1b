"""Dead letters: by step and error, one by one, and what is done with many of them."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from streams.console.console import Planned
from streams.console.formats import cut
from streams.console.letter_access import LetterAccess
from streams.console.letter_filter import STATES, UNDONE, LetterFilter
from streams.console.page import Page
from streams.console.pages.dead_letter import letter_routes
from streams.console.record_parts import key_part
from streams.errors import ConfigurationError
from streams.replay.dead_letters.ledger import LetterState
from streams.replay.dead_letters.purge import purge_letters
from streams.replay.dead_letters.retry import order_retry, plan_retry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    from streams.console.app_snapshot import AppSnapshot
    from streams.console.console import Console
    from streams.console.letter_index import LetterLine, LetterList
    from streams.replay.dead_letters.retry import RetryPlan

PATH: Final = "/apps/{app}/dead-letters"
SHOWN_GROUPS: Final = 200
SHOWN_LETTERS: Final = 100
SHOWN_REASONS: Final = 10
PLAN_SECONDS: Final = 5.0
"""How old a number that is to be confirmed may be: it is counted again then."""


class Shown(NamedTuple):
    """A page of a list."""

    total: int
    lines: Sequence[tuple[LetterLine, str]]
    """Dead letters with their keys as text."""


class Counted(NamedTuple):
    """What an action would be done to."""

    number: int
    waiting: int
    """Those that are selected and are being retried."""
    skipped: int
    """Those that are left out, as there are later records of their key."""
    refused: Sequence[tuple[str, int]]
    """Reasons why some cannot be retried, and how many."""

    @classmethod
    def of(cls, plan: RetryPlan) -> Counted:
        reasons = Counter(reason for _, reason in plan.refused)
        return cls(len(plan.ready), plan.waiting, plan.skipped, reasons.most_common())


def routes(console: Console) -> Sequence[Route]:
    """The routes of the page."""
    access = LetterAccess(console)
    return [*_lists(console, access), *_actions(console, access), *letter_routes(console, access)]


def _now() -> int:
    return time.time_ns() // 1_000_000


def _filter(request: Request) -> LetterFilter:
    try:
        return LetterFilter.of(request.query_params)
    except ConfigurationError as error:
        raise HTTPException(400, str(error)) from error


def _lists(console: Console, access: LetterAccess) -> Sequence[Route]:
    def again(request: Request, app: AppSnapshot) -> Response | None:
        if "again" not in request.query_params:
            return None
        access.forget(app)
        rest = {name: text for name, text in request.query_params.items() if name != "again"}
        return RedirectResponse(console.url(request, _path(request), **rest), 303)

    def groups(request: Request) -> Response:
        app = console.app(request)
        looked = again(request, app)
        if looked is not None:
            return looked
        latest, lookup = access.look(app)
        return console.render(
            request,
            "dead_letters.html",
            page="dead-letters",
            title="Dead letters",
            app=app,
            topic=access.topic(app),
            known=latest,
            lookup=lookup,
            states=None if latest is None else latest.states,
            groups=() if latest is None else latest.groups[:SHOWN_GROUPS],
            more=0 if latest is None else max(0, len(latest.groups) - SHOWN_GROUPS),
        )

    def letters(request: Request) -> Response:
        app = console.app(request)
        looked = again(request, app)
        if looked is not None:
            return looked
        wanted = _filter(request)
        number = _page_number(request)
        latest, lookup = access.look(app)
        shown = None
        if latest is not None:
            found = latest
            shown = console.lookups.get(
                ("dead letter list", app.name, found.version, wanted, number),
                lambda: _shown(console, access, app, found, wanted, number),
                # Ages in the filter move on.
                keep=60.0 if wanted.since or wanted.until else 3600.0,
            )
        return console.render(
            request,
            "dead_letter_list.html",
            page="dead-letters",
            title="Dead letters",
            app=app,
            topic=access.topic(app),
            known=latest,
            lookup=lookup,
            shown=shown,
            wanted=wanted,
            states=list(STATES),
            number=number,
            size=SHOWN_LETTERS,
            # What the fields may be chosen of.
            steps=[] if latest is None else sorted({group.step for group in latest.groups}),
            exceptions=[] if latest is None else sorted({group.exception for group in latest.groups}),
        )

    return [console.get(PATH, groups), console.get(f"{PATH}/list", letters)]


def _path(request: Request) -> str:
    return request.url.path.removeprefix(request.scope.get("root_path", ""))


def _page_number(request: Request) -> int:
    text = request.query_params.get("page", "1")
    return max(1, int(text)) if text.isdecimal() and len(text) < 9 else 1


def _shown(
    console: Console,
    access: LetterAccess,
    app: AppSnapshot,
    known: LetterList,
    wanted: LetterFilter,
    number: int,
) -> Shown:
    form = access.form(app)
    selects = wanted.lines(_now(), console.values, form)
    found = list(filter(selects, known.lines))
    first = (number - 1) * SHOWN_LETTERS
    return Shown(
        len(found),
        [
            (line, cut(key_part(console.values, form(line.source), line.key, None).text, 80))
            for line in found[first : first + SHOWN_LETTERS]
        ],
    )


def _actions(console: Console, access: LetterAccess) -> Sequence[Route]:
    def retry_plan(app: AppSnapshot, wanted: LetterFilter, *, newest: bool) -> RetryPlan:
        letters = access.library(app)
        selection = wanted.selection(_now(), console.values, access.form(app), UNDONE)
        return plan_retry(letters, selection, only_if_newest=newest, look_for_newer=False)

    def confirm_retry(request: Request) -> Response:
        app, wanted = console.app(request), _filter(request).fixed(_now())._replace(state="")
        newest = request.query_params.get("newest") == "1"
        counted = console.lookups.get(
            ("dead letter count", app.name, "retry", wanted, newest),
            lambda: Counted.of(retry_plan(app, wanted, newest=newest)),
            keep=PLAN_SECONDS,
        )
        return _confirm(console, request, app, "retry", wanted, counted.value, counted.error, newest=newest)

    def retry(request: Request, form: Mapping[str, str]) -> Planned | Response:
        app, wanted = console.app(request), LetterFilter.of(form)
        newest = form.get("newest") == "1"
        plan = retry_plan(app, wanted, newest=newest)
        confirmed = _confirmed(form)
        if confirmed != len(plan.ready):
            return _confirm(
                console, request, app, "retry", wanted, Counted.of(plan), "", newest=newest, before=confirmed
            )

        def run() -> str:
            try:
                ordered = order_retry(access.library(app), plan, _now())
            finally:
                access.forget(app)
            return f"retry requested of {_dead_letters(len(ordered))}: workers process them now"

        return _planned(app, wanted, confirmed, run)

    def confirm_purge(request: Request) -> Response:
        app, wanted = console.app(request), _filter(request).fixed(_now())
        counted = console.lookups.get(
            ("dead letter count", app.name, "purge", wanted),
            lambda: _purgeable(console, access, app, wanted),
            keep=PLAN_SECONDS,
        )
        return _confirm(console, request, app, "purge", wanted, counted.value, counted.error)

    def purge(request: Request, form: Mapping[str, str]) -> Planned | Response:
        app, wanted = console.app(request), LetterFilter.of(form)
        confirmed = _confirmed(form)
        counted = _purgeable(console, access, app, wanted)
        if confirmed != counted.number:
            return _confirm(console, request, app, "purge", wanted, counted, "", before=confirmed)

        def run() -> str:
            letters = access.library(app)
            selection = wanted.selection(_now(), console.values, access.form(app), _purged_states(wanted))
            try:
                done = purge_letters(letters, selection, at=_now())
            finally:
                access.forget(app)
            return f"{_dead_letters(done.letters)} discarded; {done.deleted:,} offsets deleted from the topic"

        return _planned(app, wanted, confirmed, run)

    return [
        console.get(f"{PATH}/retry", confirm_retry),
        console.post(f"{PATH}/retry", "retry dead letters", retry),
        console.get(f"{PATH}/purge", confirm_purge),
        console.post(f"{PATH}/purge", "purge dead letters", purge),
    ]


def _purged_states(wanted: LetterFilter) -> tuple[LetterState, ...]:
    """The states of what a purge takes: what waits for a retry is kept, and what is purged is purged."""
    return tuple(
        state for state in STATES[wanted.state] if state not in (LetterState.WAITING, LetterState.PURGED)
    )


def _purgeable(console: Console, access: LetterAccess, app: AppSnapshot, wanted: LetterFilter) -> Counted:
    letters = access.library(app)
    states = _purged_states(wanted)
    selection = wanted.selection(_now(), console.values, access.form(app), (*states, LetterState.WAITING))
    counts = Counter(row.state for row in letters.rows(selection))
    return Counted(sum(counts[state] for state in states), counts[LetterState.WAITING], 0, ())


def _confirm(
    console: Console,
    request: Request,
    app: AppSnapshot,
    action: str,
    wanted: LetterFilter,
    counted: Counted | None,
    error: str,
    *,
    newest: bool = False,
    before: int | None = None,
) -> Response:
    """The page that asks for confirmation, again if the number is no longer what was confirmed ``before``."""
    return console.render(
        request,
        "dead_letters_confirm.html",
        page="dead-letters",
        title=f"{action.capitalize()} dead letters",
        app=app,
        # After a POST there is nothing to refresh, and a number that is shown does not change.
        live=counted is None and not error,
        status=200 if before is None else 409,
        action=action,
        wanted=wanted,
        newest=newest,
        counted=counted,
        reasons=[] if counted is None else counted.refused[:SHOWN_REASONS],
        more=0 if counted is None else max(0, len(counted.refused) - SHOWN_REASONS),
        error=error,
        before=before,
    )


def _confirmed(form: Mapping[str, str]) -> int:
    text = form.get("count", "")
    if not text.isdecimal() or len(text) > 12:
        raise ConfigurationError("the form does not say how many dead letters are confirmed")
    return int(text)


def _planned(app: AppSnapshot, wanted: LetterFilter, count: int, run: object) -> Planned:
    assert callable(run)
    return Planned(
        app=app.name,
        target="all dead letters" if not wanted else "dead letters of a selection",
        details={**wanted.pairs, "count": str(count)},
        run=run,
        location=f"/apps/{app.name}/dead-letters",
    )


def _dead_letters(count: int) -> str:
    return f"{count:,} dead letter{'s' * (count != 1)}"


DEAD_LETTERS: Final = Page("dead-letters", "Dead letters", of_app=True, routes=routes)
