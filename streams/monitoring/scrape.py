"""A worker's metrics, read from its HTTP port at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Scrape:
    """What ``/metrics`` said at ``time``, in seconds on the monotonic clock of whoever asked."""

    time: float
    samples: Mapping[str, Mapping[tuple[str, ...], float]] = field(default_factory=dict)
    """The values of each sample's name, by the values of its labels in the order of the labels' names."""

    @staticmethod
    def parse(text: str, time: float) -> Scrape:
        """Read the text format. Raises ``ValueError`` if it is none."""
        samples: dict[str, dict[tuple[str, ...], float]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = tuple(value for _, value in sorted(sample.labels.items()))
                samples.setdefault(sample.name, {})[labels] = sample.value
        return Scrape(time, samples)

    def by_label(self, name: str) -> dict[str, float]:
        """The values of a sample that has one label, by its value; empty if there is none of that name."""
        return {labels[0]: value for labels, value in self.samples.get(name, {}).items() if len(labels) == 1}

    def total(self, name: str) -> float:
        """The sum of a sample's values; 0 if there is none of that name."""
        return sum(self.samples.get(name, {}).values())
