"""How pages reach dead letters: an index for each app, and the library's functions to change them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from streams.console.letter_index import LetterIndex
from streams.console.programs import Programs
from streams.errors import ConfigurationError
from streams.replay.dead_letters.ledger import LetterState
from streams.replay.dead_letters.rows import DeadLetters
from streams.topology.topic_format import TopicFormat, topic_format

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.console.app_snapshot import AppSnapshot
    from streams.console.console import Console
    from streams.console.letter_index import LetterList
    from streams.console.lookups import Lookup

KEEP_SECONDS: Final = 10.0
"""How old what is shown may be before it is looked at again, while the page is open."""

WAITING_SECONDS: Final = 2.0
"""The same while dead letters are being retried."""

LOOKUP: Final = "dead letters"
LOOKUP_OF_ONE: Final = "dead letter"


class LetterAccess:
    """The dead letters of the apps of a console."""

    def __init__(self, console: Console) -> None:
        self.programs = Programs()
        self._console = console
        self._indexes: dict[str, LetterIndex] = {}

    def topic(self, app: AppSnapshot) -> str:
        """The app's dead-letter topic; without its program, its name unless a setting says another."""
        return f"{app.name}-dead-letters" if app.program is None else app.program.dead_letter_topic

    def index(self, app: AppSnapshot) -> LetterIndex:
        """What was read of the app's dead letters."""
        return self._indexes.setdefault(
            app.name, LetterIndex(self._console.collector.broker, app.name, self.topic(app))
        )

    def look(self, app: AppSnapshot) -> tuple[LetterList | None, Lookup[LetterList]]:
        """What is known, and the lookup that brings it up to date."""
        index = self.index(app)
        latest = index.latest
        keep = KEEP_SECONDS
        if latest is not None and not latest.complete:
            keep = 0.0
        elif latest is not None and latest.states[LetterState.WAITING]:
            keep = WAITING_SECONDS
        lookup = self._console.lookups.get((LOOKUP, app.name), index.update, keep=keep)
        return index.latest, lookup

    def forget(self, app: AppSnapshot) -> None:
        """Look again with the next page."""
        self._console.lookups.forget(LOOKUP, app.name)
        self._console.lookups.forget(LOOKUP_OF_ONE, app.name)

    def form(self, app: AppSnapshot) -> Callable[[str], TopicFormat]:
        """Returns the form of what steps read from a topic. For lookups: a registry may be asked."""
        known: dict[str, TopicFormat] = {}
        program = app.program

        def form(topic: str) -> TopicFormat:
            if program is None:
                return TopicFormat()
            if topic not in known:
                found = topic_format(self.programs.topology(program), program.name, topic)
                # What a dead letter has of an internal topic is without the origin.
                known[topic] = found._replace(relayed=False)
            return known[topic]

        return form

    def library(self, app: AppSnapshot) -> DeadLetters:
        """The library's functions for an app whose program is here, else raises ``ConfigurationError``."""
        program = app.program
        if program is None:
            raise ConfigurationError(
                f"the console does not have the program of app {app.name!r}",
                hint=f"start it with: streams console MODULE:app, where app is App({app.name!r})",
            )
        return DeadLetters(program, self._console.collector.broker, self.programs.topology(program))
