"""Which dead letters a page or an action is about: what a form says, and what is in a link."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from streams.console.letter_index import MESSAGE_CHARACTERS
from streams.console.moments import parse_moment
from streams.console.record_parts import key_part
from streams.errors import ConfigurationError
from streams.replay.dead_letters.ledger import LetterState
from streams.replay.dead_letters.rows import Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from streams.console.formats import ValueFormat
    from streams.console.letter_index import LetterLine
    from streams.replay.dead_letters.rows import LetterRow
    from streams.topology.topic_format import TopicFormat

UNDONE: Final = (LetterState.OPEN, LetterState.WAITING)

STATES: Final[Mapping[str, tuple[LetterState, ...]]] = {
    "": UNDONE,
    **{str(state): (state,) for state in LetterState},
    "all": tuple(LetterState),
}
"""What may be chosen as the state, and the states that it stands for."""


class LetterFilter(NamedTuple):
    """The fields of a form, as text; what is empty does not restrict."""

    step: str = ""
    exception: str = ""
    topic: str = ""
    message: str = ""
    """A text that the error's message contains."""
    key: str = ""
    since: str = ""
    until: str = ""
    state: str = ""

    @classmethod
    def of(cls, pairs: Mapping[str, str]) -> LetterFilter:
        """What a form or a link says. Raises ``ConfigurationError`` for a time or a state that is none."""
        made = cls(**{name: pairs.get(name, "").strip() for name in cls._fields})
        if made.state not in STATES:
            raise ConfigurationError(
                f"{made.state!r} is no state of a dead letter",
                hint=f"choose of {', '.join(filter(None, STATES))}",
            )
        for text in filter(None, (made.since, made.until)):
            parse_moment(text, 0)
        return made

    def __bool__(self) -> bool:
        """Whether it restricts anything."""
        return any(self)

    @property
    def pairs(self) -> dict[str, str]:
        """What restricts, for links, forms and records of actions."""
        return {name: text for name, text in self._asdict().items() if text}

    def fixed(self, now: int) -> LetterFilter:
        """The same, with times instead of ages, so that it means the same later."""

        def moment(text: str) -> str:
            if not text:
                return ""
            return datetime.fromtimestamp(parse_moment(text, now) / 1000, UTC).isoformat()

        return self._replace(since=moment(self.since), until=moment(self.until))

    def lines(
        self, now: int, values: ValueFormat, form: Callable[[str], TopicFormat]
    ) -> Callable[[LetterLine], bool]:
        """Whether a line is meant. ``form`` returns the form of a topic's records."""
        states = STATES[self.state]
        holds = self._holds(now, values, form)

        def selects(line: LetterLine) -> bool:
            return (
                line.state in states
                and self.step in ("", line.step)
                and self.exception in ("", line.exception)
                and self.topic in ("", line.topic)
                and holds(line.message, line.failed_at, line.source, line.key)
            )

        return selects

    def selection(
        self,
        now: int,
        values: ValueFormat,
        form: Callable[[str], TopicFormat],
        states: tuple[LetterState, ...],
    ) -> Selection:
        """The same for an action on dead letters in these states."""
        holds = self._holds(now, values, form)

        def selects(row: LetterRow) -> bool:
            letter = row.letter
            return holds(
                row.message[:MESSAGE_CHARACTERS], row.failed_at, letter.source.topic, letter.record.key
            )

        return Selection(
            states=states,
            step=self.step or None,
            exception=self.exception or None,
            topic=self.topic or None,
            predicate=selects,
        )

    def _holds(
        self, now: int, values: ValueFormat, form: Callable[[str], TopicFormat]
    ) -> Callable[[str, int, str, bytes | None], bool]:
        since = parse_moment(self.since, now) if self.since else None
        until = parse_moment(self.until, now) if self.until else None
        wanted = self.key.encode()

        def holds(message: str, failed_at: int, source: str, key: bytes | None) -> bool:
            return (
                (not self.message or self.message in message)
                and (since is None or failed_at >= since)
                and (until is None or failed_at < until)
                and (
                    not wanted
                    or (key == wanted and not values.names)
                    or (key is not None and key_part(values, form(source), key, None).text == self.key)
                )
            )

        return holds
