"""``streams bridge``: messages of another system into a topic, or a topic's records there."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import typer

from streams.app import App
from streams.broker import NewTopic
from streams.cli.bridge_ways import connection, way_of
from streams.cli.options import Servers
from streams.cli.run import run_app
from streams.errors import ConfigurationError
from streams.runtime.topics import ANY_TIME
from streams.serde import Bytes
from streams.topology.topic_names import topic_name_fault

if TYPE_CHECKING:
    from collections.abc import Mapping

PARTITIONS: Final = 4
"""Of a topic that is created."""

URL_VARIABLE: Final = "BRIDGE_URL"
"""Has the URL for worker processes, whose arguments everyone on the machine can read."""


def bridge(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL|env:NAME",
            help="The system: amqp://… or amqps://… (RabbitMQ), redis://…, rediss://…, unix:///path, "
            "zeromq+tcp://HOST:PORT or zeromq+ipc:///path (several of ZeroMQ with commas). env:NAME reads it "
            "from the environment, which keeps a password out of process listings; passwords that are not in "
            "the URL are read from RABBITMQ_PASSWORD and REDISCLI_AUTH.",
        ),
    ],
    *,
    topic: Annotated[str | None, typer.Option(metavar="T", help="Messages go into this topic.")] = None,
    from_topic: Annotated[
        str | None, typer.Option(metavar="T", help="The records of this topic go to the system.")
    ] = None,
    app: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Names the consumer group and the position; default: after the topic and the system, "
            "e.g. orders-from-redis-list-jobs.",
        ),
    ] = None,
    partitions: Annotated[
        int | None,
        typer.Option(min=1, help=f"Partitions of --topic if it has to be created; default: {PARTITIONS}."),
    ] = None,
    queue: Annotated[
        str | None, typer.Option(metavar="Q", help="A queue.", rich_help_panel="RabbitMQ")
    ] = None,
    exchange: Annotated[
        str | None,
        typer.Option(metavar="E", help="An exchange that gets records.", rich_help_panel="RabbitMQ"),
    ] = None,
    routing_key: Annotated[
        str | None,
        typer.Option(
            metavar="K",
            help="With --exchange: of all records; default: each one's key.",
            rich_help_panel="RabbitMQ",
        ),
    ] = None,
    key_from: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|header:NAME",
            help="The property, e.g. message_id, or header of messages that is the key.",
            rich_help_panel="RabbitMQ",
        ),
    ] = None,
    stream: Annotated[
        str | None, typer.Option(metavar="S", help="A stream.", rich_help_panel="Redis")
    ] = None,
    list_: Annotated[
        str | None, typer.Option("--list", metavar="L", help="A list.", rich_help_panel="Redis")
    ] = None,
    channel: Annotated[
        list[str] | None,
        typer.Option(metavar="C", help="A channel, or a pattern. Repeatable.", rich_help_panel="Redis"),
    ] = None,
    hashes: Annotated[
        str | None,
        typer.Option(
            metavar="PREFIX",
            help="Each record sets the fields of the hash PREFIX + key, of a JSON object.",
            rich_help_panel="Redis",
        ),
    ] = None,
    strings: Annotated[
        str | None,
        typer.Option(
            metavar="PREFIX", help="Each record sets the string PREFIX + key.", rich_help_panel="Redis"
        ),
    ] = None,
    expires: Annotated[
        float | None,
        typer.Option(
            min=0.001, metavar="SECONDS", help="With --strings: their time to live.", rich_help_panel="Redis"
        ),
    ] = None,
    publish: Annotated[
        bool,
        typer.Option(
            "--publish", help="With --strings: publish in channels of these names.", rich_help_panel="Redis"
        ),
    ] = False,
    field: Annotated[
        str | None,
        typer.Option(
            metavar="F",
            help="The field of a stream's entries that is the value. Default: from a stream a JSON object of "
            "all fields, to a stream 'value'.",
            rich_help_panel="Redis",
        ),
    ] = None,
    key_field: Annotated[
        str | None,
        typer.Option(metavar="F", help="The field that is the key.", rich_help_panel="Redis"),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="G", help="Read a stream in this consumer group of Redis.", rich_help_panel="Redis"
        ),
    ] = None,
    take: Annotated[
        Literal["left", "right"] | None,
        typer.Option(help="The end of a list that is taken from; default: left.", rich_help_panel="Redis"),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(min=1, help="Trim a stream to about this length.", rich_help_panel="Redis"),
    ] = None,
    pull: Annotated[
        bool, typer.Option("--pull", help="Receive what others PUSH.", rich_help_panel="ZeroMQ")
    ] = False,
    sub: Annotated[
        bool, typer.Option("--sub", help="Receive what others PUBlish.", rich_help_panel="ZeroMQ")
    ] = False,
    push: Annotated[
        bool, typer.Option("--push", help="Send to those who PULL, in turn.", rich_help_panel="ZeroMQ")
    ] = False,
    pub: Annotated[
        bool, typer.Option("--pub", help="Send to all who SUBscribe.", rich_help_panel="ZeroMQ")
    ] = False,
    bind: Annotated[
        bool,
        typer.Option("--bind", help="Wait at the address for the other program.", rich_help_panel="ZeroMQ"),
    ] = False,
    subscribe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PREFIX",
            help="With --sub: messages whose first frame begins so; default: all. Repeatable.",
            rich_help_panel="ZeroMQ",
        ),
    ] = None,
    subscribers: Annotated[
        int | None,
        typer.Option(min=1, help="With --pub: send only while there are so many.", rich_help_panel="ZeroMQ"),
    ] = None,
    frames: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="The frames of a message: key, value, origin, headers; default: key,value, and origin "
            "if sent.",
            rich_help_panel="ZeroMQ",
        ),
    ] = None,
    curve_secret_key: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Encrypt: the own secret key, as file:/path or env:NAME.",
            rich_help_panel="ZeroMQ",
        ),
    ] = None,
    curve_server_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="The public key of the side that is bound.", rich_help_panel="ZeroMQ"
        ),
    ] = None,
    curve_clients: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|any",
            help="With --bind: the public keys of those who may connect.",
            rich_help_panel="ZeroMQ",
        ),
    ] = None,
    tasks: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many workers read: of a RabbitMQ queue, a Redis group, or with --pull."
        ),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of worker processes.")] = None,
    bootstrap_servers: Servers = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Override a setting of the app.")
    ] = None,
    supervised_by: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Move messages between another system and a topic, until SIGTERM or Ctrl-C.

    With --topic from the system into it, with --from-topic the other way. Values pass as they are. What is
    guaranteed depends on the system: see "Bridges" in the documentation.
    """
    options: Mapping[str, Any] = {
        "queue": queue,
        "exchange": exchange,
        "routing-key": routing_key,
        "key-from": key_from,
        "stream": stream,
        "list": list_,
        "channel": channel,
        "hashes": hashes,
        "strings": strings,
        "expires": expires,
        "publish": publish,
        "field": field,
        "key-field": key_field,
        "group": group,
        "take": take,
        "max-length": max_length,
        "pull": pull,
        "sub": sub,
        "push": push,
        "pub": pub,
        "bind": bind,
        "subscribe": subscribe,
        "subscribers": subscribers,
        "frames": frames,
        "curve-secret-key": curve_secret_key,
        "curve-server-key": curve_server_key,
        "curve-clients": curve_clients,
        "tasks": tasks,
    }
    # An empty text is an option too, which its connector refuses.
    given = {name: value for name, value in options.items() if value not in (None, False, [])}
    known = {"topic": topic, "from-topic": from_topic, "app": app, "partitions": partitions}
    if supervised_by is None:
        _warn(url)
        if workers is not None:
            os.environ[URL_VARIABLE] = connection(url)
    arguments = ["bridge", f"env:{URL_VARIABLE}"]
    arguments += _words({name: value for name, value in known.items() if value is not None} | given)
    run_app(
        lambda: _app(url, topic, from_topic, app, partitions, given),
        arguments,
        settings=settings or (),
        bootstrap_servers=bootstrap_servers,
        workers=workers,
        supervised_by=supervised_by,
    )


def _words(options: Mapping[str, Any]) -> list[str]:
    """Options as arguments."""
    words: list[str] = []
    for name, value in options.items():
        if value is True:
            words.append(f"--{name}")
        else:
            words += [f"--{name}={each}" for each in (value if isinstance(value, list) else [value])]
    return words


def _warn(url: str) -> None:
    if not url.startswith("env:") and urlsplit(url).password:
        typer.echo(
            "warning: everyone on this machine can read the password in the URL, as an argument of this "
            "process.\n  hint: put the URL into a variable of the environment, and write env:NAME",
            err=True,
        )


def _app(
    url: str,
    topic: str | None,
    from_topic: str | None,
    name: str | None,
    partitions: int | None,
    given: Mapping[str, Any],
) -> App:
    if (topic is None) == (from_topic is None):
        raise ConfigurationError(
            "a bridge needs either --topic or --from-topic",
            hint="--topic T: from the system into the topic; --from-topic T: from the topic to the system",
        )
    option, bridged = ("--topic", topic) if topic is not None else ("--from-topic", from_topic)
    assert bridged is not None
    if fault := topic_name_fault(bridged):
        raise ConfigurationError(f"{option} {bridged!r} cannot name a topic: {fault}")
    if topic is None and partitions is not None:
        raise ConfigurationError(
            "--partitions is for --topic: the topic that is read has to exist",
            hint=f"create it with: streams topics create {bridged} --partitions {partitions}",
        )
    address = connection(url)
    way = way_of(address, given, inward=topic is not None)
    connector = way.make(address, given)
    made = App(name or way.name(bridged, given))
    if topic is None:
        made.stream(bridged, key=Bytes(), value=way.value, tombstones=True).sink(connector)
        return made
    made.source(connector).to(topic)
    with closing(made.broker().admin()) as admin:
        if topic not in admin.topics():
            new = NewTopic(
                name=topic,
                partitions=partitions or PARTITIONS,
                settings={"retention.ms": "-1"},
                wished=ANY_TIME,
            )
            admin.create_topics([new])
    return made
