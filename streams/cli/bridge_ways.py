"""The ways in which ``streams bridge`` connects a system with a topic, and the options of each."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from streams.durations import seconds
from streams.errors import ConfigurationError
from streams.serde import Bytes, Json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from streams.connectors.sink import SinkConnector
    from streams.connectors.source import SourceConnector
    from streams.serde import Serde

    Options = Mapping[str, Any]
    """The options that were given, by their names without dashes before them."""

_SCHEMES: Final = {
    "redis": "redis",
    "rediss": "redis",
    "unix": "redis",
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "rabbitmq": "rabbitmq",
    "rabbitmqs": "rabbitmq",
    "zeromq+tcp": "zeromq",
    "zeromq+ipc": "zeromq",
}
_SYSTEMS: Final = {"rabbitmq": "RabbitMQ", "redis": "Redis", "zeromq": "ZeroMQ"}
_URLS: Final = {
    "rabbitmq": "amqp://USER@HOST/VHOST",
    "redis": "redis://HOST:6379/0",
    "zeromq": "zeromq+tcp://HOST:5555",
}
_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)

_CURVE: Final = ("curve-secret-key", "curve-server-key", "curve-clients")
_SOCKET: Final = ("bind", "frames", *_CURVE)


class Way(NamedTuple):
    """What is read or written in a system, chosen by one option."""

    system: str
    inward: bool
    """From the system into a topic."""
    option: str
    words: str
    """The option as a user writes it."""
    others: tuple[str, ...]
    """The further options that it takes."""
    make: Callable[[str, Options], Any]
    """Makes the connector, of a URL and the options."""
    value: Serde[Any] = Bytes()
    """Reads the values of the topic, for a sink."""

    @property
    def example(self) -> str:
        """A command that is complete."""
        topic = "--topic T" if self.inward else "--from-topic T"
        return f"streams bridge {_URLS[self.system]} {self.words} {topic}"

    def name(self, topic: str, given: Options) -> str:
        """The name of an app, which says what it bridges."""
        found = given[self.option]
        what = (
            [self.option] if found is True else [self.option, *([found] if isinstance(found, str) else found)]
        )
        name = "-".join([topic, "from" if self.inward else "to", self.system, *what])
        return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-")


def connection(text: str) -> str:
    """The URL that an argument is, or that ``env:NAME`` names. Raises ``ConfigurationError``."""
    if not text.startswith("env:"):
        return text
    name = text.removeprefix("env:")
    url = os.environ.get(name, "")
    if not url:
        raise ConfigurationError(
            f"{text}: the environment has no variable {name}", hint=f"export {name}={_URLS['redis']}"
        )
    return url


def way_of(url: str, given: Options, *, inward: bool) -> Way:
    """The way that the options choose. Raises ``ConfigurationError`` for options that do not fit together."""
    system = _system(url)
    ways = [way for way in _WAYS if way.system == system and way.inward is inward]
    chosen = [way for way in ways if way.option in given]
    direction = f"from {_SYSTEMS[system]} to a topic" if inward else f"from a topic to {_SYSTEMS[system]}"
    examples = "write " + "\n        or ".join(way.example for way in ways)
    if len(chosen) > 1:
        both = " and ".join(f"--{way.option}" for way in chosen)
        raise ConfigurationError(f"{both} are two bridges", hint="start one command for each")
    if not chosen:
        for way in _WAYS:
            if way.system == system and way.option in given:
                raise ConfigurationError(f"--{way.option} is not for the way {direction}", hint=examples)
        raise ConfigurationError(
            f"the way {direction} needs one of {', '.join(f'--{way.option}' for way in ways)}", hint=examples
        )
    way = chosen[0]
    for option in given:
        if option != way.option and option not in way.others:
            takes = ", ".join(f"--{other}" for other in way.others) or "no further options"
            raise ConfigurationError(
                f"--{option} is not for --{way.option} {direction}", hint=f"--{way.option} takes {takes}"
            )
    return way


def _system(url: str) -> str:
    scheme = _SCHEME.match(url)
    if scheme is not None and (system := _SCHEMES.get(scheme[1].lower())):
        return system
    # The rest of it may have a password.
    what = f"{scheme[1]}://…" if scheme is not None else "an argument without ://"
    if scheme is None and not re.search(r"[@:/]", url):
        what = repr(url)
    raise ConfigurationError(
        f"{what} is no system that can be bridged",
        hint=f"write one of {', '.join(_URLS.values())}, or env:NAME of a variable that has it",
    )


# --- RabbitMQ. The packages of the systems are optional, so they are imported when they are needed.


def _from_queue(url: str, given: Options) -> SourceConnector[Any, Any]:
    from streams.connectors.rabbitmq import Header, RabbitMQQueue  # noqa: PLC0415 - as above

    key = given.get("key-from")
    header = None if key is None or not key.startswith("header:") else Header(key.removeprefix("header:"))
    return RabbitMQQueue(
        _amqp(url), given["queue"], value=Bytes(), key_from=header or key, tasks=given.get("tasks", 1)
    )


def _to_queue(url: str, given: Options) -> SinkConnector:
    from streams.connectors.rabbitmq import RabbitMQSink  # noqa: PLC0415 - as above

    # The default exchange, where the routing key is a queue's name.
    return RabbitMQSink(_amqp(url), exchange="", routing_key=given["queue"], value=Bytes())


def _to_exchange(url: str, given: Options) -> SinkConnector:
    from streams.connectors.rabbitmq import Key, RabbitMQSink  # noqa: PLC0415 - as above

    return RabbitMQSink(
        _amqp(url),
        exchange=given["exchange"],
        routing_key=given.get("routing-key", Key()),
        value=Bytes(),
    )


def _amqp(url: str) -> str:
    """The URL with the scheme that RabbitMQ's own documentation uses."""
    return re.sub("^rabbitmq", "amqp", url, flags=re.IGNORECASE)


# --- Redis


def _from_stream(url: str, given: Options) -> SourceConnector[Any, Any]:
    from streams.connectors.redis import RedisStream  # noqa: PLC0415 - as above

    return RedisStream(
        url,
        given["stream"],
        # Without a field, the bytes are a JSON object of all fields.
        value=Bytes(),
        field=given.get("field"),
        key_field=given.get("key-field"),
        group=given.get("group"),
        tasks=given.get("tasks", 1),
    )


def _from_list(url: str, given: Options) -> SourceConnector[Any, Any]:
    from streams.connectors.redis import RedisList  # noqa: PLC0415 - as above

    return RedisList(url, given["list"], value=Bytes(), take=given.get("take", "left"))


def _from_channel(url: str, given: Options) -> SourceConnector[Any, Any]:
    from streams.connectors.redis import RedisChannel  # noqa: PLC0415 - as above

    patterns = [name for name in given["channel"] if re.search(r"[*?\[]", name)]
    channels = [name for name in given["channel"] if name not in patterns]
    return RedisChannel(url, channels, value=Bytes(), patterns=patterns)


def _to_redis(url: str, given: Options) -> SinkConnector:
    from streams.connectors.redis import RedisSink  # noqa: PLC0415 - as above

    return RedisSink(
        url,
        stream=given.get("stream"),
        list=given.get("list"),
        hashes=given.get("hashes"),
        strings=given.get("strings"),
        expires=seconds(given["expires"]) if "expires" in given else None,
        publish=given.get("publish", False),
        field=given.get("field", "value"),
        key_field=given.get("key-field"),
        max_length=given.get("max-length"),
    )


# --- ZeroMQ


def _from_push(url: str, given: Options) -> SourceConnector[Any, Any]:
    from streams.connectors.zeromq import PullSource  # noqa: PLC0415 - as above

    return PullSource(value=Bytes(), tasks=given.get("tasks", 1), **_socket(url, given))


def _from_publisher(url: str, given: Options) -> SourceConnector[Any, Any]:
    from streams.connectors.zeromq import SubSource  # noqa: PLC0415 - as above

    return SubSource(value=Bytes(), subscribe=given.get("subscribe", [""]), **_socket(url, given))


def _to_pull(url: str, given: Options) -> SinkConnector:
    from streams.connectors.zeromq import PushSink  # noqa: PLC0415 - as above

    return PushSink(value=Bytes(), **_socket(url, given))


def _to_subscribers(url: str, given: Options) -> SinkConnector:
    from streams.connectors.zeromq import PubSink  # noqa: PLC0415 - as above

    return PubSink(value=Bytes(), subscribers=given.get("subscribers", 0), **_socket(url, given))


def _socket(url: str, given: Options) -> dict[str, Any]:
    """The options that all sockets have."""
    from streams.connectors.zeromq import CurveClient, CurveServer  # noqa: PLC0415 - as above

    addresses = [address.strip().removeprefix("zeromq+") for address in url.split(",")]
    found: dict[str, Any] = {"connect": addresses}
    if given.get("bind"):
        if len(addresses) > 1:
            raise ConfigurationError(
                f"--bind is for one address, got {len(addresses)}", hint="leave out --bind to connect to all"
            )
        found = {"bind": addresses[0]}
    if "frames" in given:
        found["frames"] = [name.strip() for name in given["frames"].split(",")]
    keys = [option for option in _CURVE if option in given]
    if not keys:
        return found
    side, other = ("clients", "server-key") if given.get("bind") else ("server-key", "clients")
    if keys != [option for option in _CURVE if option != f"curve-{other}"]:
        raise ConfigurationError(
            f"{', '.join(f'--{option}' for option in keys)}: {'with' if given.get('bind') else 'without'} "
            f"--bind, keys are --curve-secret-key and --curve-{side}",
            hint="--curve-secret-key file:/path or env:NAME. The side that is bound has --curve-clients "
            "FOLDER, or any; the side that connects has --curve-server-key KEY",
        )
    secret = given["curve-secret-key"]
    if given.get("bind"):
        return found | {"curve": CurveServer(secret_key=secret, clients=given["curve-clients"])}
    return found | {"curve": CurveClient(secret_key=secret, server_key=given["curve-server-key"])}


_WAYS: Final[Sequence[Way]] = (
    Way(
        "rabbitmq",
        inward=True,
        option="queue",
        words="--queue Q",
        others=("key-from", "tasks"),
        make=_from_queue,
    ),
    Way("rabbitmq", inward=False, option="queue", words="--queue Q", others=(), make=_to_queue),
    Way(
        "rabbitmq",
        inward=False,
        option="exchange",
        words="--exchange E --routing-key K",
        others=("routing-key",),
        make=_to_exchange,
    ),
    Way(
        "redis",
        inward=True,
        option="stream",
        words="--stream S",
        others=("field", "key-field", "group", "tasks"),
        make=_from_stream,
    ),
    Way("redis", inward=True, option="list", words="--list L", others=("take",), make=_from_list),
    Way("redis", inward=True, option="channel", words="--channel C", others=(), make=_from_channel),
    Way(
        "redis",
        inward=False,
        option="stream",
        words="--stream S",
        others=("field", "key-field", "max-length"),
        make=_to_redis,
    ),
    Way("redis", inward=False, option="list", words="--list L", others=(), make=_to_redis),
    Way(
        "redis",
        inward=False,
        option="hashes",
        words="--hashes PREFIX:",
        others=(),
        make=_to_redis,
        value=Json(),
    ),
    Way(
        "redis",
        inward=False,
        option="strings",
        words="--strings PREFIX:",
        others=("expires", "publish"),
        make=_to_redis,
    ),
    Way(
        "zeromq",
        inward=True,
        option="pull",
        words="--pull",
        others=("tasks", *_SOCKET),
        make=_from_push,
    ),
    Way(
        "zeromq",
        inward=True,
        option="sub",
        words="--sub",
        others=("subscribe", *_SOCKET),
        make=_from_publisher,
    ),
    Way("zeromq", inward=False, option="push", words="--push", others=_SOCKET, make=_to_pull),
    Way(
        "zeromq",
        inward=False,
        option="pub",
        words="--pub",
        others=("subscribers", *_SOCKET),
        make=_to_subscribers,
    ),
)
