"""Queries over HTTP: answered from this worker's state, or forwarded to the worker that holds the key.

Responses are JSON: the result, or ``error`` with a ``reason``: ``unknown store`` and ``no value`` (404),
``bad request`` (400), ``held elsewhere`` (421, only sent to other workers) and ``unavailable`` (503: the
state is being restored or moved, or its worker does not answer).

A key in a URL is percent-decoded. It is the key itself for the serde ``Text``, the key's bytes for ``Bytes``
(with ``encoding=base64``: encoded bytes for any serde), and JSON for other serdes.
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
from streams.structs import decodable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from ssl import SSLContext

    from streams.eventtime.windows import Windowed
    from streams.queries.directory import Replicas
    from streams.queries.http import Request
    from streams.queries.query import Queries
    from streams.state.definition import StoreDefinition

DEFAULT_LIMIT = 1000
"""The default of ``limit``, the maximum number of entries in a response."""

MOST_ENTRIES = 10_000
"""The highest ``limit``: the complete response is built in memory."""

FORWARD_SECONDS = 2.0
"""The time-out of requests to other workers, for connecting and for each read."""

_TO_BASE64 = str.maketrans(" -_", "++/")

NO_ANSWER_HINT = (
    "try again in a moment: the worker may be starting or restoring; if it stays so, check that all workers "
    "have an http_port and the same http_token"
)

ASKED_BY = "x-streams-asked-by"
"""The header of requests from another worker, which are never forwarded."""


@decodable
class _Range(msgspec.Struct):
    """The response of another worker for a range."""

    partitions: list[int]
    entries: list[dict[str, Any]]


class StoreRoutes:
    """The paths under ``/stores``. ``replicas`` knows which worker holds which partitions.

    Requests to other workers use ``token``, and HTTPS if there is ``tls``, which checks their certificates.
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
        """The path templates and their routes, for ``HttpServer``."""
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
        definition, key, partition = self._parse(request)

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
        definition, key, partition = self._parse(request)
        start, stop = _number(request, "start"), _number(request, "stop")
        limit = _limit(request)

        def view(windows: Sequence[Windowed[Any, Any]]) -> Response:
            found = [_window(item) for item in windows]
            return _json({"key": _key_as_json(definition, key, request.query), "windows": found})

        def answer() -> Response | None:
            windows = self._queries.windows(
                definition.name, key, start, stop, limit=limit, partition=partition, final=False
            )
            return view(windows) if windows else None

        owner = self._queries.partition_of(definition.name, key) if partition is None else partition
        nothing = view([])
        if ASKED_BY in request.headers and partition is None:
            # A worker that forwards a request has to know whether this one has any window.
            nothing = _failure(404, "no value", QueryError(f"there is no window of the key {key!r}"))
        return self._routed(request, definition.name, owner, answer, nothing)

    def _range(self, request: Request) -> Response:
        definition = self._queries.definition(request.parameters["store"])
        # An unknown encoding is an error even if the response has no key.
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
        """The entries of all workers. Raises ``StateUnavailable`` if partitions are missing."""
        everything = set(range(self._queries.partition_count(definition.name)))
        missing = everything - set(held)
        for refresh in (False, True):
            found, covered = list(entries), set(held)
            owners = self._replicas.owners(definition.name, refresh=refresh) if missing else {}
            for address in sorted({owners[number] for number in missing if number in owners}):
                response = self._ask(address, request.target)
                if response is not None and response.status == 200:
                    try:
                        answer = msgspec.json.decode(response.body, type=_Range)
                    except msgspec.DecodeError:
                        # Not a worker of this app: its address in the directory is wrong.
                        continue
                    if not covered & set(answer.partitions) and everything >= set(answer.partitions):
                        covered |= set(answer.partitions)
                        found += answer.entries
            if covered == everything:
                found.sort(key=lambda entry: _order(definition, entry, request.query))
                return found[: _limit(request)], sorted(covered)
        raise StateUnavailable(
            f"no worker answers for partitions {sorted(everything - covered)} of store {definition.name!r}",
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
        """The response of this worker, else of the worker that holds the partition, else of any other.

        ``answer`` queries this worker; ``nothing`` is the response if no worker has a value. Workers other
        than the partition's are asked only if keys may be in other partitions than those of murmur2, and the
        request does not name a partition.
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
            for refresh in (False, True):
                owner = self._replicas.owners(store, refresh=refresh).get(partition)
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
            f"no worker answers for partition {partition} of store {store!r}",
            hint=NO_ANSWER_HINT,
        )

    def _others(self, store: str, asked: set[str | None], *, needed: bool) -> set[str]:
        """The other workers that hold partitions of a store; with ``needed``, raises if they are unknown."""
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
                hint="set http_tls_ca to the authority that signed it, http_advertised_host to a name in it",
            ) from error
        if response is None or not response.content_type.startswith("application/json"):
            # Another kind of server answers at this address.
            return None
        # A worker with another token is misconfigured: the client's own token was right.
        return None if response.status == UNAUTHORIZED.status else response

    def _parse(self, request: Request) -> tuple[StoreDefinition, Any, int | None]:
        """The store, the key and, if the request names one, the partition."""
        definition = self._queries.definition(request.parameters["store"])
        key = _key_of(definition, request.parameters["key"], request.query)
        return definition, key, _number(request, "partition")


def _window(item: Windowed[Any, Any]) -> dict[str, Any]:
    """A window as answers have it."""
    shown = {"start": item.start, "end": item.end, "value": item.value}
    return shown | {"closed": True} if isinstance(item, ClosedWindow) else shown


def _key_of(definition: StoreDefinition, text: str, query: Mapping[str, str]) -> Any:
    """Decode a key in a URL. Raises ``QueryError``."""
    serde = definition.key
    try:
        if _is_base64(query):
            # In a query, a plus decodes to a space. The URL-safe alphabet and missing padding are accepted.
            text = text.translate(_TO_BASE64).rstrip("=")
            payload = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
            return next(iter(serde.deserialize([payload])))
        if isinstance(serde, Text):
            # Raises for surrogates, which stand for bytes that are not UTF-8.
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
    """A key for a response, in the same encoding as in URLs."""
    if _is_base64(query):
        return encode_key(definition, key)
    if not isinstance(definition.key, Bytes):
        return key
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise QueryError(
            f"store {definition.name!r} has keys that are not text", hint="query with encoding=base64"
        ) from error


def _is_base64(query: Mapping[str, str]) -> bool:
    encoding = query.get("encoding")
    if encoding not in (None, "base64"):
        raise QueryError(f"unknown encoding {encoding!r}: only base64 is supported")
    return encoding == "base64"


def _order(definition: StoreDefinition, entry: dict[str, Any], query: Mapping[str, str]) -> tuple[int, bytes]:
    key = entry["key"]
    if isinstance(key, bytes):
        # A key of this worker; the keys of other workers are text.
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
            f"limit must be {MOST_ENTRIES} or less, got {limit}", hint="query further entries with start="
        )
    return DEFAULT_LIMIT if limit is None else limit


def _json(answer: Any, status: int = 200) -> Response:
    return Response(status, msgspec.json.encode(answer, enc_hook=repr) + b"\n", "application/json")


def _failure(status: int, reason: str, error: Exception) -> Response:
    return _json({"reason": reason, "error": str(error)}, status)
