"""Which keys most records of a partition have, from samples of what the worker polls."""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING

from streams.monitoring.bottleneck import LEADING, WINDOW_SECONDS, Bottleneck, Cause

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from streams.records import TopicPartition
    from streams.runtime.key_sample import SampledKey, SampledKeys

FEWEST = 30
"""Keys of a partition that must have been sampled."""

HALF = 0.5
"""The least share of a partition's records that is named of one key."""

MOST = 0.8
"""The least share that is named of a few keys together."""

GROUP = 5
"""The most keys that are named together."""

MANY = 4
"""So many times more keys must there be than are named together."""

SHOWN = 40
"""The length at which a key is cut."""


class HotKeys:
    """Samples of the last seconds. With ``show`` false, keys are counted and not named."""

    def __init__(self, *, show: bool) -> None:
        self._show = show
        self._samples: deque[tuple[float, Mapping[TopicPartition, SampledKeys]]] = deque()

    def observe(self, sample: Mapping[TopicPartition, SampledKeys], now: float) -> None:
        """Note the keys that were sampled up to now."""
        if sample:
            self._samples.append((now, sample))
        while self._samples and self._samples[0][0] <= now - WINDOW_SECONDS:
            self._samples.popleft()

    def forget(self) -> None:
        """Keep nothing while nobody asks."""
        self._samples.clear()

    def name(self, hot: Collection[str]) -> list[Bottleneck]:
        """The keys that most records have, of partitions in ``hot`` or of much of what the worker reads."""
        records: Counter[TopicPartition] = Counter()
        keys: dict[TopicPartition, Counter[SampledKey | None]] = {}
        for _, sample in self._samples:
            for partition, sampled in sample.items():
                records[partition] += sampled.records
                keys.setdefault(partition, Counter()).update(sampled.keys)
        found = []
        for partition, count in records.most_common():
            leading = _leading(keys[partition])
            if leading is None:
                continue
            names, share = leading
            if str(partition) in hot or share * count / records.total() >= LEADING:
                found.append(self._bottleneck(partition, names, share))
        return found

    def _bottleneck(
        self, partition: TopicPartition, names: Collection[SampledKey], share: float
    ) -> Bottleneck:
        what = "the same key" if len(names) == 1 else f"one of {len(names)} keys"
        subject = str(partition)
        if self._show:
            shown = ", ".join(map(_shown, names))
            what = f"the key {shown}" if len(names) == 1 else f"{what} ({shown})"
            subject = f"{partition}: {shown}"
        return Bottleneck(
            Cause.KEY,
            subject,
            share,
            f"{share:.0%} of the records of {partition} have {what}: "
            "records with one key are in one partition, however many there are",
        )


def _leading(keys: Counter[SampledKey | None]) -> tuple[list[SampledKey], float] | None:
    """The key that half of the records have or more, else the few that most have, with their share."""
    total = keys.total()
    if total < FEWEST:
        return None
    # Records without a key are not bound to a partition.
    ranked = [(key, count) for key, count in keys.most_common(GROUP + 1) if key is not None][:GROUP]
    if ranked and ranked[0][1] / total >= HALF:
        return [ranked[0][0]], ranked[0][1] / total
    for size in range(2, len(ranked) + 1):
        share = sum(count for _, count in ranked[:size]) / total
        if share >= MOST and len(keys) >= MANY * size:
            return [key for key, _ in ranked[:size]], share
    return None


def _shown(key: SampledKey) -> str:
    """A key as text, escaped and cut; as hexadecimal digits if it is none."""
    cut = key.length > len(key.beginning)
    # What was cut in the middle of a character is still text.
    text = key.beginning.decode(errors="ignore" if cut else "replace")
    if "\ufffd" in text or not any(map(str.isprintable, text)):
        digits = key.beginning.hex()
        return f"0x{digits[:SHOWN]}{'…' if cut or len(digits) > SHOWN else ''}"
    return f"{text[:SHOWN]!r}{'…' if cut or len(text) > SHOWN else ''}"
