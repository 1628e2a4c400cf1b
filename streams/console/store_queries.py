"""Questions about stores, which the workers' HTTP ports answer."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote, urlencode

import msgspec

from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from streams.console.watched import Watched

ANSWER_SECONDS: Final = 10.0
"""How long a worker may take: it may have to ask the others."""

TRIED_WORKERS: Final = 3
ASKED_AT_ONCE: Final = 8


class HeldStore(msgspec.Struct, frozen=True):
    """A store, as one worker has it."""

    name: str
    windowed: bool
    key: str
    partitions: int
    held: list[int]
    restoring: list[int]
    approximate_count: int


@decodable
class _Stores(msgspec.Struct, frozen=True):
    stores: list[HeldStore]


class StoreView(NamedTuple):
    """A store of an app, as all its workers have it."""

    name: str
    kind: str
    """What the steps do that have it, e.g. ``aggregate``."""
    windowed: bool | None
    """``None`` where no worker has said so."""
    key: str
    """The serde of its keys; empty where it is unknown."""
    partitions: int | None
    owners: Sequence[tuple[str, Sequence[int]]]
    """The workers and the partitions that they hold, of those that hold any."""
    restoring: Sequence[int]
    entries: int | None
    """About how many; ``None`` unless all partitions are held by workers that answer."""

    @property
    def missing(self) -> Sequence[int]:
        """The partitions that no worker holds or restores, as far as it is known how many there are."""
        held = {number for _, numbers in self.owners for number in numbers}
        return sorted(set(range(self.partitions or 0)) - held - set(self.restoring))


class Answer(NamedTuple):
    """What came of a question."""

    state: str
    """``found``, ``no value``, ``unavailable``, ``refused``, or ``silent`` where no worker answers."""
    content: Any = None
    """The answer, where something was found."""
    sentence: str = ""
    """Why there is none."""


def read_stores(watched: Watched, addresses: Mapping[str, str]) -> dict[str, Sequence[HeldStore] | None]:
    """What each worker holds, by its name; ``None`` for one that did not answer."""
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        bodies = pool.map(lambda address: watched.read(address, "/stores"), addresses.values())
        return {worker: _held(body) for worker, body in zip(addresses, bodies, strict=True)}


def _held(body: bytes | None) -> Sequence[HeldStore] | None:
    try:
        return None if body is None else msgspec.json.decode(body, type=_Stores).stores
    except msgspec.MsgspecError:
        return None


def put_together(
    topology: Mapping[str, Any] | None, held: Mapping[str, Sequence[HeldStore] | None]
) -> tuple[list[StoreView], list[str]]:
    """The stores that can be queried, by name, and the names of all others."""
    kinds = {name: kind for kind, name in _stores_of(topology)}
    reports: defaultdict[str, list[tuple[str, HeldStore]]] = defaultdict(list)
    for worker, stores in held.items():
        for store in stores or ():
            reports[store.name].append((worker, store))
    found = []
    for name, parts in sorted(reports.items()):
        first = parts[0][1]
        owners = [(worker, store.held) for worker, store in parts if store.held]
        view = StoreView(
            name,
            kinds.get(name, ""),
            first.windowed,
            first.key,
            first.partitions,
            owners,
            sorted({number for _, store in parts for number in store.restoring}),
            None,
        )
        if not view.missing and not view.restoring:
            view = view._replace(entries=sum(store.approximate_count for _, store in parts))
        found.append(view)
    if not reports:
        return [
            StoreView(name, kind, None, "", None, (), (), None) for name, kind in sorted(kinds.items())
        ], []
    return found, sorted(kinds.keys() - reports.keys())


def _stores_of(topology: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """The kinds and names of the stores in the graph; the step that comes first has a store."""
    known = set()
    for part in (topology or {}).get("subtopologies", ()):
        for node in part["nodes"]:
            for name in node.get("stores", ()):
                if name not in known:
                    known.add(name)
                    yield node.get("operator", ""), name


def key_path(store: str, key: str, *, base64: bool) -> str:
    """The path of a key's value."""
    return _path(store, "keys", key, {"encoding": "base64" if base64 else None})


def windows_path(
    store: str, key: str, *, start: int | None, stop: int | None, limit: int, base64: bool
) -> str:
    """The path of a key's windows that start in a range of milliseconds."""
    query = {"start": start, "stop": stop, "limit": limit, "encoding": "base64" if base64 else None}
    return _path(store, "windows", key, query)


def range_path(store: str, *, start: object, stop: object, limit: int, base64: bool) -> str:
    """The path of a range of keys, or of window starts, of all workers."""
    query = {
        "all": "true",
        "start": start,
        "stop": stop,
        "limit": limit,
        "encoding": "base64" if base64 else None,
    }
    return _path(store, None, None, query)


def _path(store: str, kind: str | None, key: str | None, query: Mapping[str, object]) -> str:
    parts = ["/stores", store] if kind is None else ["/stores", store, kind, key or ""]
    pairs = {name: value for name, value in query.items() if value is not None}
    path = "/".join([parts[0], *(quote(part, safe="") for part in parts[1:])])
    return f"{path}?{urlencode(pairs)}" if pairs else path


def ask_any(watched: Watched, addresses: Sequence[str], path: str) -> Answer:
    """Ask a worker, which asks the one that has the answer; another one, where it does not answer."""
    for address in addresses[:TRIED_WORKERS]:
        response = watched.ask(address, path, timeout=ANSWER_SECONDS)
        if response is None:
            continue
        try:
            content = msgspec.json.decode(response.body)
        except msgspec.MsgspecError:
            continue
        if response.status == 200:
            return Answer("found", content)
        reason, error = (str(content.get(name, "")) for name in ("reason", "error"))
        if response.status == 404 and reason in ("no value", "no job"):
            return Answer("no value", sentence=error)
        if response.status == 503:
            return Answer("unavailable", sentence=error)
        return Answer("refused", sentence=error or f"the worker answered with status {response.status}")
    return Answer("silent", sentence="no worker answers")
