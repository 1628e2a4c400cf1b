"""Counters and gauges of the program's own, beside those of the library in ``/metrics``."""

from __future__ import annotations

import re
from threading import Lock
from typing import TYPE_CHECKING, Literal, NamedTuple

from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_TAKEN = ("streams_", "process_")
"""How the names of the library's own metrics begin."""

_TOTAL = "_total"


class Samples(NamedTuple):
    """A metric as it is now."""

    kind: Literal["counter", "gauge"]
    name: str
    description: str
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], float]
    """By the values of the labels."""


class _Metric:
    """Values by labels. Any thread may change and read them."""

    def __init__(self, name: str, labels: tuple[str, ...]) -> None:
        self.name = name
        self._labels = labels
        self._lock = Lock()
        # One without labels exists from the beginning: what is missing cannot be told from what is broken.
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def value(self, **labels: object) -> float:
        """What it is now in this process; 0 where it never was anything. For tests."""
        return self._values.get(self._key(labels), 0.0)

    def values(self) -> dict[tuple[str, ...], float]:
        with self._lock:
            return dict(self._values)

    def _add(self, amount: float, labels: Mapping[str, object]) -> None:
        key = self._key(labels)
        with self._lock:
            self._values[key] = self._values.get(key, 0.0) + amount

    def _key(self, labels: Mapping[str, object]) -> tuple[str, ...]:
        if len(labels) != len(self._labels) or not all(name in labels for name in self._labels):
            raise TypeError(
                f"metric {self.name!r} has the labels {', '.join(self._labels) or 'none'}, "
                f"got {', '.join(labels) or 'none'}"
            )
        return tuple(str(labels[name]) for name in self._labels)


class Counter(_Metric):
    """A number that only grows, see ``Metrics.counter``."""

    def inc(self, amount: float = 1, /, **labels: object) -> None:
        """Add to it. In a function that takes batches, once for the batch."""
        if amount < 0:
            raise ValueError(f"counter {self.name!r} cannot get {amount!r}: it only grows, a gauge does not")
        self._add(amount, labels)


class Gauge(_Metric):
    """A number that goes up and down, see ``Metrics.gauge``."""

    def set(self, value: float, /, **labels: object) -> None:
        """What it is from now on."""
        key = self._key(labels)
        with self._lock:
            self._values[key] = float(value)

    def inc(self, amount: float = 1, /, **labels: object) -> None:
        """Add to it; a negative amount takes away."""
        self._add(amount, labels)

    def remove(self, **labels: object) -> None:
        """Show it no more with these labels, e.g. when a task ends that it was about."""
        key = self._key(labels)
        with self._lock:
            self._values.pop(key, None)


class Metrics:
    """The program's own metrics, see ``App.metrics``.

    They are those of a process: each worker shows its own, and Prometheus adds them up. They count what
    functions did: what is processed again, after an aborted transaction or a restart, is counted again.
    """

    def __init__(self, application: str) -> None:
        self._application = application
        self._metrics: list[tuple[Counter | Gauge, str, tuple[str, ...]]] = []
        self._names: set[str] = set()

    def counter(self, name: str, description: str, *, labels: Sequence[str] = ()) -> Counter:
        """A counter, shown as ``<name>_total``.

        ``labels`` are the names of the labels that each ``inc`` gives values for; these should be few, as
        each combination is kept for as long as the process runs. Raises ``ConfigurationError`` for a name
        that is taken, by another metric of the app or by the library, or that Prometheus does not allow.
        """
        base = name.removesuffix(_TOTAL)
        counter = Counter(base, self._checked(name, labels, {base, base + _TOTAL, f"{base}_created"}))
        self._metrics.append((counter, description, tuple(labels)))
        return counter

    def gauge(self, name: str, description: str, *, labels: Sequence[str] = ()) -> Gauge:
        """A gauge, otherwise as ``counter``."""
        gauge = Gauge(name, self._checked(name, labels, {name}))
        self._metrics.append((gauge, description, tuple(labels)))
        return gauge

    def _checked(self, name: str, labels: Sequence[str], names: set[str]) -> tuple[str, ...]:
        """The labels, where these and the metric's names may be used; ``names`` are taken from now on."""
        what = f"metric {name!r} of app {self._application!r}"
        if not _NAME.fullmatch(name):
            raise ConfigurationError(f"{what}: no such name is allowed", hint="use letters, digits and '_'")
        if name.startswith(_TAKEN):
            raise ConfigurationError(
                f"{what}: the library's own metrics begin with {' or '.join(_TAKEN)}",
                hint="begin with the app's name, e.g.",
            )
        if isinstance(labels, str):
            raise ConfigurationError(f"{what}: labels={labels!r} is one text", hint=f"write [{labels!r}]")
        for label in labels:
            if not _NAME.fullmatch(label) or label.startswith("__"):
                raise ConfigurationError(
                    f"{what}: no label may be named {label!r}", hint="use letters, digits and '_'"
                )
        if len(set(labels)) != len(labels):
            raise ConfigurationError(f"{what}: the labels {', '.join(labels)} have one name twice")
        if names & self._names:
            raise ConfigurationError(
                f"{what}: the name is taken by another metric of the app",
                hint="declare it once, beside the app, and use that one in all functions",
            )
        self._names |= names
        return tuple(labels)


def samples(metrics: Metrics) -> list[Samples]:
    """All metrics as they are now, in the order in which they were declared."""
    return [
        Samples(
            "counter" if isinstance(metric, Counter) else "gauge",
            metric.name,
            description,
            labels,
            metric.values(),
        )
        for metric, description, labels in metrics._metrics  # noqa: SLF001 - users of metrics declare them, and do not read them
    ]
