"""The program's own counters and gauges, served in ``/metrics`` beside those of the library."""

from __future__ import annotations

import re
from threading import Lock
from typing import TYPE_CHECKING, Literal, NamedTuple

from streams.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_TAKEN = ("streams_", "process_")
"""Prefixes of the library's own metrics."""

_TOTAL = "_total"


class Samples(NamedTuple):
    """The current values of a metric."""

    kind: Literal["counter", "gauge"]
    name: str
    description: str
    labels: tuple[str, ...]
    values: Mapping[tuple[str, ...], float]
    """The values, by label values."""


class _Metric:
    """The values of a metric by labels. It is thread-safe."""

    def __init__(self, name: str, labels: tuple[str, ...]) -> None:
        self.name = name
        self._labels = labels
        self._lock = Lock()
        # A metric without labels starts with 0: a missing metric looks like a failed scrape.
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def value(self, **labels: object) -> float:
        """The current value in this process, 0 if it was never set. For tests."""
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
    """A metric that only increases, see ``Metrics.counter``."""

    def inc(self, amount: float = 1, /, **labels: object) -> None:
        """Increase the counter. In a function of batches, call it once for the batch."""
        if amount < 0:
            raise ValueError(
                f"counter {self.name!r} cannot be increased by {amount!r}: "
                "use a gauge for values that also decrease"
            )
        self._add(amount, labels)


class Gauge(_Metric):
    """A metric that increases and decreases, see ``Metrics.gauge``."""

    def set(self, value: float, /, **labels: object) -> None:
        """Set the value."""
        key = self._key(labels)
        with self._lock:
            self._values[key] = float(value)

    def inc(self, amount: float = 1, /, **labels: object) -> None:
        """Increase the value, or decrease it by a negative amount."""
        self._add(amount, labels)

    def remove(self, **labels: object) -> None:
        """Remove the value with these labels, e.g. when the task that it describes ends."""
        key = self._key(labels)
        with self._lock:
            self._values.pop(key, None)


class Metrics:
    """The program's own metrics, see ``App.metrics``.

    They belong to a process: each worker exposes its own, to be summed in Prometheus. They count what
    functions did: a record that is processed again, after an aborted transaction or a restart, counts again.
    """

    def __init__(self, application: str) -> None:
        self._application = application
        self._metrics: list[tuple[Counter | Gauge, str, tuple[str, ...]]] = []
        self._names: set[str] = set()

    def counter(self, name: str, description: str, *, labels: Sequence[str] = ()) -> Counter:
        """Declare a counter, exposed as ``<name>_total``.

        ``labels`` are the names of the labels for which each ``inc`` gives values. Use few different values:
        each combination is kept for the lifetime of the process. Raises ``ConfigurationError`` for a name
        that another metric of the app or the library uses, or that Prometheus does not allow.
        """
        base = name.removesuffix(_TOTAL)
        counter = Counter(base, self._checked(name, labels, {base, base + _TOTAL, f"{base}_created"}))
        self._metrics.append((counter, description, tuple(labels)))
        return counter

    def gauge(self, name: str, description: str, *, labels: Sequence[str] = ()) -> Gauge:
        """Declare a gauge; name and labels as for ``counter``."""
        gauge = Gauge(name, self._checked(name, labels, {name}))
        self._metrics.append((gauge, description, tuple(labels)))
        return gauge

    def _checked(self, name: str, labels: Sequence[str], names: set[str]) -> tuple[str, ...]:
        """Check the name and the labels, reserve ``names``, and return the labels as a tuple."""
        what = f"metric {name!r} of app {self._application!r}"
        if not _NAME.fullmatch(name):
            raise ConfigurationError(
                f"{what}: this name is not allowed", hint="use letters, digits and '_', not first a digit"
            )
        if name.startswith(_TAKEN):
            raise ConfigurationError(
                f"{what}: names that begin with {' or '.join(_TAKEN)} are reserved for the library",
                hint="use another prefix, e.g. the app's name",
            )
        if isinstance(labels, str):
            raise ConfigurationError(
                f"{what}: labels={labels!r} is a string, not a list", hint=f"write labels=[{labels!r}]"
            )
        for label in labels:
            if not _NAME.fullmatch(label) or label.startswith("__"):
                raise ConfigurationError(
                    f"{what}: {label!r} is not allowed as a label's name",
                    hint="use letters, digits and '_', not '__' first",
                )
        if len(set(labels)) != len(labels):
            raise ConfigurationError(f"{what}: the labels {', '.join(labels)} contain a duplicate")
        if names & self._names:
            raise ConfigurationError(
                f"{what}: another metric of the app has this name",
                hint="declare the metric once, at module level, and use it in all functions",
            )
        self._names |= names
        return tuple(labels)


def samples(metrics: Metrics) -> list[Samples]:
    """The current values of all metrics, in the order of declaration."""
    return [
        Samples(
            "counter" if isinstance(metric, Counter) else "gauge",
            metric.name,
            description,
            labels,
            metric.values(),
        )
        for metric, description, labels in metrics._metrics  # noqa: SLF001 - programs declare metrics, and only the exposition reads them
    ]
