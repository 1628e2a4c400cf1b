"""The worker's view of dead letters: their topic, their share of the input, and their log lines."""

from __future__ import annotations

import traceback
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from streams.errors import DeadLetterLimitExceeded, error_text
from streams.events import Event, get_logger
from streams.operators.guard import came_from
from streams.topology.graph import Step, written_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from streams.config import Settings
    from streams.policy import Action
    from streams.records import Batch, Headers, Output
    from streams.topology.graph import Node


class FirstFailures:
    """Logs that a step continues without a record, once for each step and type of error."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._log = get_logger()
        self._said: set[tuple[str, type[Exception]]] = set()

    def is_first(self, step: str, error: Exception) -> bool:
        """Whether a step has not failed so before; from now on it has."""
        kind = (step, type(error))
        if kind in self._said:
            return False
        self._said.add(kind)
        return True

    def log(self, action: Action, batch: Batch[Any, Any], row: int, node: Node, error: Exception) -> None:
        """Say that a row met a policy other than ``fail``, and where the code is that failed on it."""
        code = node.operator.code if isinstance(node, Step) else None
        raised = traceback.extract_tb(error.__traceback__)[-1:]
        fields = {
            "code": None if code is None else written_at(code),
            "declared_at": node.place or None,
            "raised_at": f"{raised[0].filename}:{raised[0].lineno}" if raised else None,
            "topic": self._topic if action == "dead_letter" else None,
        }
        self._log.warning(
            Event.STEP_FAILED,
            step=node.name,
            error=f"{type(error).__name__}: {error_text(error)}",
            record=came_from(batch, row),
            on_error=action,
            **{name: value for name, value in fields.items() if value is not None},
        )


LOG_SECONDS = 1.0
"""Shortest time between log lines about dead letters."""

EXAMPLE_BYTES = 100
"""Bytes of a value in the error for too many dead letters."""


def dead_letter_topic(settings: Settings, application: str) -> str:
    """The name of an app's dead-letter topic."""
    return settings.dead_letter_topic or f"{application}-dead-letters"


class DeadLetterWatch:
    """Tracks the share of dead letters among the last records. ``clock`` returns seconds."""

    def __init__(self, settings: Settings, topic: str, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._topic = topic
        self._clock = clock
        self._log = get_logger()
        self._slices: deque[tuple[int, int]] = deque()
        self._records = self._letters = 0
        self._unlogged: Counter[str] = Counter()
        self._logged = -float("inf")
        self._last: tuple[bytes | None, Headers | None] | None = None

    def note(self, output: Output) -> None:
        """Remember the last dead letter, as an example for the error."""
        if output.headers:
            self._last = output.values[-1], output.headers[-1]

    def add(self, records: int, letters: Counter[str]) -> None:
        """Count a slice of that many records, with its dead letters by step.

        Raises ``DeadLetterLimitExceeded`` once ``dead_letter_window`` records were seen and more than
        ``dead_letter_limit`` of the last ones became dead letters.
        """
        self._unlogged.update(letters)
        now = self._clock()
        if self._unlogged and now - self._logged >= LOG_SECONDS:
            self._log.warning(Event.DEAD_LETTERS, by_step=dict(self._unlogged), topic=self._topic)
            self._unlogged.clear()
            self._logged = now
        share = self._share(records, letters.total())
        if share > self._settings.dead_letter_limit:
            raise DeadLetterLimitExceeded(
                f"{share:.1%} of the last {self._records} records became dead letters, "
                f"dead_letter_limit is {self._settings.dead_letter_limit:.1%}{self._example()}",
                hint=f"see the headers of the records in {self._topic}; fix the input or the code, or raise "
                "dead_letter_limit, then restart: the app continues from its last commit",
            )

    def _example(self) -> str:
        """The last dead letter: its coordinates, its value and its error."""
        if self._last is None:
            return ""
        content, pairs = self._last
        headers = dict(pairs or ())
        topic, partition, offset, message = (
            (headers.get(f"__streams.errors.{name}") or b"?").decode(errors="replace")
            for name in ("topic", "partition", "offset", "message")
        )
        value = repr((content or b"")[:EXAMPLE_BYTES].decode(errors="replace"))
        return f"\n  e.g. topic {topic}, partition {partition}, offset {offset}, {value}: {message[:300]}"

    def _share(self, records: int, letters: int) -> float:
        """Count a slice and return the share of dead letters, or 0 until the window is full."""
        window = self._settings.dead_letter_window
        self._slices.append((records, letters))
        self._records += records
        self._letters += letters
        while self._records - self._slices[0][0] >= window:
            gone = self._slices.popleft()
            self._records -= gone[0]
            self._letters -= gone[1]
        return self._letters / self._records if self._records >= window else 0.0
