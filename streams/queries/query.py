"""Queries of the state that one worker holds, from any thread."""

from __future__ import annotations

import time
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from streams.errors import HeldElsewhere, QueryError, StateError, StateUnavailable, UnknownStore
from streams.partitioning import partition_for
from streams.runtime.task import TaskId
from streams.state.committed import CommittedStore, encode_key
from streams.topology.graph import Step, matches

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from streams.eventtime.windows import Windowed
    from streams.runtime.worker import Worker
    from streams.state.definition import StoreDefinition
    from streams.topology.graph import Subtopology, Topology

T = TypeVar("T")

LOOK_SECONDS = 5.0
"""Seconds between checks of whether a store's keys are in the partitions where murmur2 places them."""

LOOK_KEYS = 256
"""Number of keys per partition that such a check reads."""

WINDOW_START_BYTES = 8
"""Length of the prefix with the window's start before the key, in a windowed store."""

FOREVER = 1 << 63
"""Later than the start of any window."""


class StoreStatus(NamedTuple):
    """The partitions of one store that a worker holds."""

    name: str
    windowed: bool
    key: str
    """The name of the serde of its keys."""
    partitions: int
    """The number of partitions of the store."""
    held: list[int]
    """The partitions that can be queried on this worker."""
    restoring: list[int]
    """The partitions that this worker is restoring."""
    approximate_count: int
    """The approximate number of entries in the held partitions."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A store, and how its keys are distributed over partitions."""

    definition: StoreDefinition
    subtopology: Subtopology
    partitions: int
    outside: bool
    """Whether other producers write some of its input, which may place keys by another hash than murmur2."""


class Queries:
    """Queries of the committed state in the stores of ``worker``; uncommitted changes are not visible.

    ``partitions`` are the input topics with their partition counts, ``elsewhere`` those of them whose keys
    are known to be placed by another hash than murmur2. A key that is not in the partition of its hash is
    searched in the other held partitions. Raises ``UnknownStore``, ``HeldElsewhere`` for a partition of
    another worker, ``StateUnavailable`` for one that is being restored, and ``QueryError`` for a query that
    does not fit the store.
    """

    def __init__(
        self,
        topology: Topology,
        worker: Worker,
        partitions: Mapping[str, int],
        *,
        elsewhere: Collection[str] = (),
    ) -> None:
        self._worker = worker
        self._places: dict[str, _Place] = {}
        self._scattered: set[str] = set()
        """Stores with keys in other partitions than those of murmur2."""
        self._looked: dict[str, float] = {}
        """When the keys of the other stores were last checked for that."""
        together = dict(topology.copartitions)
        for subtopology in topology.subtopologies:
            for node in subtopology.nodes:
                for store in node.owns if isinstance(node, Step) else ():
                    topics = together[node.name]
                    count = max(
                        (
                            count
                            for topic, count in partitions.items()
                            if any(matches(wanted, topic) for wanted in topics)
                        ),
                        default=1,
                    )
                    if store.queryable:
                        outside = count > 1 and any(topic not in topology.repartitions for topic in topics)
                        self._places[store.name] = _Place(store, subtopology, count, outside)
                        if any(matches(wanted, topic) for wanted in topics for topic in elsewhere):
                            self._scattered.add(store.name)

    def definition(self, store: str) -> StoreDefinition:
        """The definition of a store in the topology."""
        return self._place(store).definition

    def get(self, store: str, key: Any, *, partition: int | None = None, final: bool = True) -> Any:
        """The value of a key, or ``None``; see ``_find`` for ``final``."""
        place = self._place(store, windowed=False)
        if partition is not None:
            return self._ask(place, partition, lambda committed: committed.get(key))
        return self._find(place, key, lambda committed: committed.get(key), final=final)

    def entries(
        self, store: str, start: Any = None, stop: Any = None, *, limit: int | None = None
    ) -> list[tuple[Any, Any]]:
        """Keys with ``start <= key < stop`` of all held partitions, and their values, in byte order."""
        place = self._place(store, windowed=False)
        low, high = (None if key is None else encode_key(place.definition, key) for key in (start, stop))
        found = self._merged(place, lambda committed: committed.entries(low, high), limit)
        return [(key, value) for _, key, value in found]

    def windows(
        self,
        store: str,
        key: Any = None,
        start: int | None = None,
        stop: int | None = None,
        *,
        limit: int | None = None,
        partition: int | None = None,
        final: bool = True,
    ) -> list[Windowed[Any, Any]]:
        """The windows that start in ``[start, stop)`` (milliseconds since the epoch).

        Those that are open, and as ``ClosedWindow`` those that have closed and are kept. Of one key, or
        without one of all partitions held, in the order of starts and encoded keys. See ``_find`` for
        ``final``.
        """
        place = self._place(store, windowed=True)
        low, high = max(0, start or 0), FOREVER if stop is None else stop
        if key is None:
            found = self._merged(place, lambda committed: committed.windows(low, high, limit), limit)
            return [window for _, window in found]

        def read(committed: CommittedStore) -> list[Windowed[Any, Any]]:
            return [window for _, window in committed.windows_of(key, low, high, limit)]

        if partition is not None:
            return self._ask(place, partition, read)
        return self._find(place, key, read, final=final)

    def partition_of(self, store: str, key: Any) -> int:
        """The partition to which murmur2 places a key, and so its state."""
        place = self._place(store)
        return partition_for(encode_key(place.definition, key), place.partitions)

    def partition_count(self, store: str) -> int:
        """The number of partitions of the store."""
        return self._place(store).partitions

    @property
    def names(self) -> list[str]:
        """The stores that can be queried."""
        return list(self._places)

    def held(self) -> dict[str, list[int]]:
        """The partitions of each store that this worker holds, including those being restored."""
        return {name: held for name, place in self._places.items() if (held := self._held(place))}

    def status(self) -> list[StoreStatus]:
        """The status of each store on this worker."""
        found = []
        for name, place in self._places.items():
            ready, count = [], 0
            held = self._held(place)
            for number in held:
                try:
                    count += self._ask(place, number, _approximate_count)
                except StateUnavailable:
                    continue
                ready.append(number)
            definition = place.definition
            found.append(
                StoreStatus(
                    name,
                    definition.retention is not None,
                    definition.key.name,
                    place.partitions,
                    ready,
                    [number for number in held if number not in ready],
                    count,
                )
            )
        return found

    def _place(self, store: str, *, windowed: bool | None = None) -> _Place:
        place = self._places.get(store)
        if place is None:
            raise UnknownStore(
                f"there is no store {store!r} to query",
                hint=f"stores are: {', '.join(self._places) or 'none'}",
            )
        definition = place.definition
        if windowed and definition.lists_windows:
            return place
        if windowed is not None and windowed != (definition.retention is not None):
            raise QueryError(
                f"store {store!r} is {'not windowed' if windowed else 'windowed'}",
                hint=f"query its {'keys' if windowed else 'windows'}",
            )
        return place

    def _find(self, place: _Place, key: Any, question: Callable[[CommittedStore], T], *, final: bool) -> T:
        """The answer of the partition that has the key: first the one of its hash, then any held partition.

        If none has the key, the answer is that of the first. If the key may be in a partition that another
        worker holds, ``HeldElsewhere`` is raised instead, unless ``final`` is false.
        """
        store = place.definition.name
        number = self.partition_of(store, key)
        answer: T | None = None
        failure: HeldElsewhere | StateUnavailable | None = None
        try:
            answer = self._ask(place, number, question)
        except (HeldElsewhere, StateUnavailable) as error:
            failure = error
        if not place.outside and failure is not None:
            raise failure
        if not place.outside or _is_there(answer):
            return cast("T", answer)
        asked = {number}
        for other in self._held(place):
            if other == number:
                continue
            try:
                found = self._ask(place, other, question)
            except (HeldElsewhere, StateUnavailable):
                continue
            if _is_there(found):
                self._scattered.add(store)
                return found
            asked.add(other)
        if failure is not None:
            raise failure
        if final and len(asked) < place.partitions and self.scattered(store):
            raise HeldElsewhere(
                f"store {store!r} has no value for the key {key!r:.80} in the partitions of this worker; the "
                "producers of its input place keys by another hash than murmur2: another worker may have it",
                hint="query over HTTP (setting http_port), where workers ask each other",
            )
        return cast("T", answer)

    def scattered(self, store: str) -> bool | None:
        """Whether a store has keys in other partitions than those of murmur2; ``None`` if it is not known.

        It has, if the sample of the input at the start or a sample of the store's keys shows such a key. The
        keys are sampled again after some seconds; a worker that holds none of them does not know.
        """
        place = self._place(store)
        if store in self._scattered or not place.outside:
            return place.outside
        now = time.monotonic()
        if now - self._looked.get(store, -LOOK_SECONDS) < LOOK_SECONDS:
            return False
        prefix = 0 if place.definition.retention is None else WINDOW_START_BYTES
        known: bool | None = None
        for number in self._held(place):
            try:
                keys = self._ask(place, number, _first_keys)
            except (HeldElsewhere, StateUnavailable):
                continue
            if any(partition_for(key[prefix:], place.partitions) != number for key in keys):
                self._scattered.add(store)
                return True
            known = False if keys else known
        if known is False:
            self._looked[store] = now
        return known

    def _held(self, place: _Place) -> list[int]:
        reads = place.subtopology.reads
        held = {item.partition for item in self._worker.progress if reads(item.topic)}
        return sorted(number for number in held if number < place.partitions)

    def _ask(self, place: _Place, partition: int, question: Callable[[CommittedStore], T]) -> T:
        name = place.definition.name
        if not 0 <= partition < place.partitions:
            raise QueryError(
                f"store {name!r} has no partition {partition}: its partitions are 0 to {place.partitions - 1}"
            )
        identifier = TaskId(place.subtopology.number, partition)
        task = self._worker.tasks.get(identifier)
        if task is None:
            if partition in self._held(place):
                raise StateUnavailable(f"partition {partition} of store {name!r} is being restored")
            raise HeldElsewhere(f"partition {partition} of store {name!r} is not held by this worker")
        try:
            return question(task.committed_store(name))
        except StateError as error:
            if self._worker.tasks.get(identifier) is task:
                raise
            raise StateUnavailable(f"partition {partition} of store {name!r} is being released") from error

    def _merged(
        self,
        place: _Place,
        read: Callable[[CommittedStore], Iterator[tuple[Any, ...]]],
        limit: int | None,
    ) -> list[tuple[Any, ...]]:
        """Merge the entries of the held partitions in order, at most ``limit``."""
        parts: list[Iterable[tuple[Any, ...]]] = [
            self._ask(place, number, lambda committed: list(islice(read(committed), limit)))
            for number in self._held(place)
        ]
        return list(islice(merge(*parts, key=itemgetter(0)), limit))


def _first_keys(committed: CommittedStore) -> list[bytes]:
    return [key for key, _ in islice(committed.store.scan(None, None), LOOK_KEYS)]


def _is_there(answer: object) -> bool:
    """Whether an answer has a value or windows."""
    return answer is not None and answer != []


def _approximate_count(committed: CommittedStore) -> int:
    return committed.store.approximate_count()
