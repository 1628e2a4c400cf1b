"""The stores over HTTP: what this worker holds is answered here, another's key is asked of its holder.

Answers are JSON: objects that say what was asked for, or ``error`` with the ``reason``: ``unknown store`` and
``no value`` (404), ``bad request`` (400), ``held elsewhere`` (421, only ever told to other workers) and
``unavailable`` (503: being restored, between two holders, or its holder does not answer).

A key in a URL is percent-decoded. It stands for itself where keys are ``Text`` and for its bytes where they
are ``Bytes`` (with ``encoding=base64``: for what they encode); for other serdes it is JSON.
"""

from __future__ import annotations

import base64
from ssl import SSLCertVerificationError
from typing import TYPE_CHECKING, Any

import msgspec

from streams.errors import BrokerError, HeldElsewhere, QueryError, StateUnavailable, UnknownStore
from streams.eventtime.windows import ClosedWindow
from streams.queries.http import UNAUTHORIZED, Response, ask, bearer
from streams.serde import Bytes, Json, Text
from streams.state.committed import encode_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from ssl import SSLContext

    from streams.eventtime.windows import Windowed
    from streams.queries.directory import Replicas
    from streams.queries.http import Request
    from streams.queries.query import Queries
    from streams.state.definition import StoreDefinition

DEFAULT_LIMIT = 1000
"""Entries in one answer, unless ``limit`` asks for fewer or more."""

MOST_ENTRIES = 10_000
"""The highest ``limit``: an answer is made in memory as a whole."""

FORWARD_SECONDS = 2.0
"""How long another worker may take for each step of an answer."""

_TO_BASE64 = str.maketrans(" -_", "++/")

NO_ANSWER_HINT = (
    "ask again in a moment: a worker may be starting, restoring, without an http_port, or with another "
    "http_token"
)

ASKED_BY = "x-streams-asked-by"
"""The header of questions from another worker: they are never passed on."""


class _Range(msgspec.Struct):
    """What another worker answers for a range."""

    partitions: list[int]
    entries: list[dict[str, Any]]


class StoreRoutes:
    """The paths under ``/stores``. ``replicas`` knows who holds what is not held here.

    ``token`` is what other workers are asked with; by HTTPS where ``tls`` checks their certificates.
    """

    def __init__(
        self,
        queries: Queries,
        replicas: Replicas,
        token: str | None = None,
        tls: SSLContext | None = None,
    ) -> None:
        self._token = token
        self._tls = tls
        self._queries = queries
        self._replicas = replicas

    @property
    def templates(self) -> Mapping[str, Callable[[Request], Response]]:
        """What to serve, for ``HttpServer``."""
        return {
            "/stores": self._answering(self._stores),
            "/stores/{store}": self._answering(self._range),
            "/stores/{store}/keys/{key}": self._answering(self._key),
            "/stores/{store}/windows/{key}": self._answering(self._windows),
        }

    def _answering(self, answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
        def run(request: Request) -> Response:
            try:
                return answer(request)
            except HeldElsewhere as error:
                return _failure(421, "held elsewhere", error)
            except (StateUnavailable, BrokerError) as error:
                return _failure(503, "unavailable", error)
            except UnknownStore as error:
                return _failure(404, "unknown store", error)
            except QueryError as error:
                return _failure(400, "bad request", error)

        return run

    def _stores(self, _request: Request) -> Response:
        return _json({"stores": [status._asdict() for status in self._queries.status()]})

    def _key(self, request: Request) -> Response:
        definition, key, partition = self._asked(request)

        def answer() -> Response | None:
            value = self._queries.get(definition.name, key, partition=partition, final=False)
            if value is None:
                return None
            return _json({"key": _key_as_json(definition, key, request.query), "value": value})

        text = f"store {definition.name!r} has no value for the key {key!r}"
        nothing = _failure(404, "no value", QueryError(text))
        owner = self._queries.partition_of(definition.name, key) if partition is None else partition
        return self._routed(request, definition.name, owner, answer, nothing)

    def _windows(self, request: Request) -> Response:
        definition, key, partition = self._asked(request)
        start, stop = _number(request, "start"), _number(request, "stop")
        limit = _limit(request)

        def shown(windows: Sequence[Windowed[Any, Any]]) -> Response:
            found = [_window(item) for item in windows]
            return _json({"key": _key_as_json(definition, key, request.query), "windows": found})

        def answer() -> Response | None:
            windows = self._queries.windows(
                definition.name, key, start, stop, limit=limit, partition=partition, final=False
            )
            return shown(windows) if windows else None

        owner = self._queries.partition_of(definition.name, key) if partition is None else partition
        nothing = shown([])
        if ASKED_BY in request.headers and partition is None:
            # To who asks on behalf of others, it matters whether there is something.
            nothing = _failure(404, "no value", QueryError(f"there is no window of the key {key!r}"))
        return self._routed(request, definition.name, owner, answer, nothing)

    def _range(self, request: Request) -> Response:
        definition = self._queries.definition(request.parameters["store"])
        # Refused even where there is no key to be written in it.
        _is_base64(request.query)
        held = self._queries.held().get(definition.name, [])
        entries = self._entries(definition, request)
        if request.query.get("all") == "true" and ASKED_BY not in request.headers:
            entries, held = self._gathered(definition, request, entries, held)
        return _json({"partitions": held, "entries": entries})

    def _entries(self, definition: StoreDefinition, request: Request) -> list[Any]:
        limit, query = _limit(request), request.query
        if definition.retention is not None:
            windows = self._queries.windows(
                definition.name, None, _number(request, "start"), _number(request, "stop"), limit=limit
            )
            return [{"key": _key_as_json(definition, item.key, query)} | _window(item) for item in windows]
        start, stop = (
            _key_of(definition, query[name], query) if name in query else None for name in ("start", "stop")
        )
        found = self._queries.entries(definition.name, start, stop, limit=limit)
        return [{"key": _key_as_json(definition, key, query), "value": value} for key, value in found]

    def _gathered(
        self, definition: StoreDefinition, request: Request, entries: list[Any], held: list[int]
    ) -> tuple[list[Any], list[int]]:
        """The entries of all workers. Raises ``StateUnavailable`` when partitions are missing."""
        everything = set(range(self._queries.partition_count(definition.name)))
        missing = everything - set(held)
        for anew in (False, True):
            found, covered = list(entries), set(held)
            owners = self._replicas.owners(definition.name, anew=anew) if missing else {}
            for address in sorted({owners[number] for number in missing if number in owners}):
                response = self._ask(address, request.target)
                if response is not None and response.status == 200:
                    try:
                        answer = msgspec.json.decode(response.body, type=_Range)
                    except msgspec.DecodeError:
                        # No worker of this app: the claim that named it is wrong.
                        continue
                    if not covered & set(answer.partitions) and everything >= set(answer.partitions):
                        covered |= set(answer.partitions)
                        found += answer.entries
            if covered == everything:
                found.sort(key=lambda entry: _order(definition, entry, request.query))
                return found[: _limit(request)], sorted(covered)
        raise StateUnavailable(
            f"nobody answers for partitions {sorted(everything - covered)} of store {definition.name!r}",
            hint=NO_ANSWER_HINT,
        )

    def _routed(
        self,
        request: Request,
        store: str,
        partition: int,
        answer: Callable[[], Response | None],
        nothing: Response,
    ) -> Response:
        """What this worker has, else the one that holds the partition, else any other one.

        ``answer`` is what is here, ``nothing`` what is said where no worker has anything. Other workers than
        the partition's are asked where keys may lie elsewhere than they should, unless the request names a
        partition.
        """
        answered = True
        try:
            found = answer()
            if found is not None:
                return found
        except HeldElsewhere:
            if ASKED_BY in request.headers:
                raise
            answered = False
        asked = {None, self._replicas.address}
        if not answered:
            for anew in (False, True):
                owner = self._replicas.owners(store, anew=anew).get(partition)
                if owner is None or owner in asked:
                    continue
                asked.add(owner)
                response = self._ask(owner, request.target)
                if response is not None and response.status not in (404, 421):
                    return response
                if response is not None and response.status == 404:
                    answered = True
                    break
        if "partition" not in request.query and ASKED_BY not in request.headers:
            scattered = self._queries.scattered(store)
            others = set() if scattered is False else self._others(store, asked, needed=bool(scattered))
            for address in sorted(others):
                response = self._ask(address, request.target)
                if response is not None and response.status == 200:
                    return response
                answered = answered and (response is not None or not scattered)
        if answered:
            return nothing
        raise StateUnavailable(
            f"nobody answers for partition {partition} of store {store!r}",
            hint=NO_ANSWER_HINT,
        )

    def _others(self, store: str, asked: set[str | None], *, needed: bool) -> set[str]:
        """The workers that hold other partitions of a store; ``needed`` if they may not stay unknown."""
        try:
            return {address for address in self._replicas.owners(store).values() if address not in asked}
        except BrokerError:
            if needed:
                raise
            return set()

    def _ask(self, address: str, target: str) -> Response | None:
        headers = {ASKED_BY: self._replicas.address or "", **bearer(self._token)}
        try:
            response = ask(address, target, headers=headers, timeout=FORWARD_SECONDS, tls=self._tls)
        except SSLCertVerificationError as error:
            raise StateUnavailable(
                f"the certificate of the worker at {address} is not trusted: {error}",
                hint="http_tls_ca names who signed it, http_advertised_host the name that is in it",
            ) from error
        if response is None or not response.content_type.startswith("application/json"):
            # What answers there is no worker.
            return None
        # One that has another token is no answer to who had the right one here.
        return None if response.status == UNAUTHORIZED.status else response

    def _asked(self, request: Request) -> tuple[StoreDefinition, Any, int | None]:
        """The store, the key and the partition that is asked for, if one is named."""
        definition = self._queries.definition(request.parameters["store"])
        key = _key_of(definition, request.parameters["key"], request.query)
        return definition, key, _number(request, "partition")


def _window(item: Windowed[Any, Any]) -> dict[str, Any]:
    """A window as answers have it."""
    shown = {"start": item.start, "end": item.end, "value": item.value}
    return shown | {"closed": True} if isinstance(item, ClosedWindow) else shown


def _key_of(definition: StoreDefinition, text: str, query: Mapping[str, str]) -> Any:
    """The key that a text in a URL stands for. Raises ``QueryError``."""
    serde = definition.key
    try:
        if _is_base64(query):
            # A plus in a query means a space; URLs' own alphabet for base64 will do, too, and so does one
            # without the filling at its end.
            text = text.translate(_TO_BASE64).rstrip("=")
            payload = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
            return next(iter(serde.deserialize([payload])))
        if isinstance(serde, Text):
            # Raises where these were no letters.
            text.encode()
            return text
        if isinstance(serde, Bytes):
            return text.encode(errors="surrogateescape")
        payload = text.encode()
        if isinstance(serde, Json):
            return next(iter(serde.deserialize([payload])))
        return msgspec.json.decode(payload)
    except (ValueError, msgspec.MsgspecError) as error:
        raise QueryError(
            f"store {definition.name!r} has keys of {serde.name}, not {text!r}: {error}"
        ) from error


def _key_as_json(definition: StoreDefinition, key: Any, query: Mapping[str, str]) -> Any:
    """A key as answers have it: as it may stand in a URL, or as JSON."""
    if _is_base64(query):
        return encode_key(definition, key)
    if not isinstance(definition.key, Bytes):
        return key
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise QueryError(
            f"store {definition.name!r} has keys that are no text", hint="ask with encoding=base64"
        ) from error


def _is_base64(query: Mapping[str, str]) -> bool:
    encoding = query.get("encoding")
    if encoding not in (None, "base64"):
        raise QueryError(f"unknown encoding {encoding!r}: base64 is the only one")
    return encoding == "base64"


def _order(definition: StoreDefinition, entry: dict[str, Any], query: Mapping[str, str]) -> tuple[int, bytes]:
    key = entry["key"]
    if isinstance(key, bytes):
        # Of this worker; from others it comes as text.
        return entry.get("start", 0), key
    as_it_is = _is_base64(query) or isinstance(definition.key, Text | Bytes)
    text = key if as_it_is else msgspec.json.encode(key).decode()
    return entry.get("start", 0), encode_key(definition, _key_of(definition, text, query))


def _number(request: Request, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError:
        raise QueryError(f"{name} must be a whole number, got {text!r}") from None


def _limit(request: Request) -> int:
    limit = _number(request, "limit")
    if limit is not None and limit < 1:
        raise QueryError(f"limit must be 1 or more, got {limit}")
    if limit is not None and limit > MOST_ENTRIES:
        raise QueryError(
            f"limit must be {MOST_ENTRIES} or less, got {limit}", hint="ask for the next ones with start="
        )
    return DEFAULT_LIMIT if limit is None else limit


def _json(answer: Any, status: int = 200) -> Response:
    return Response(status, msgspec.json.encode(answer, enc_hook=repr) + b"\n", "application/json")


def _failure(status: int, reason: str, error: Exception) -> Response:
    return _json({"reason": reason, "error": str(error)}, status)
