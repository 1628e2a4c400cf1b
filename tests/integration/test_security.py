"""TLS, SCRAM, OAUTHBEARER and access control lists on a real broker: access, and errors without it."""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from streams.broker import GroupSettings
from streams.broker.kafka import KafkaBroker
from streams.broker.reading import read_to_end
from streams.devstack.development import QUICK_JAVA
from streams.devstack.kafka import LocalKafka, Security
from streams.errors import ConfigurationError, NotAuthenticated
from streams.monitoring.lag import measure_lag
from streams.queries.http import ask, bearer
from streams.records import Output
from tests.integration.conftest import HERE, Count
from tests.support.commands import Done, run_streams
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kafka

USERS = {"worker": "marker-of-workers-password", "other": "marker-of-others-password"}


class Grant(NamedTuple):
    """A right on resources whose name is, or with ``prefixed`` begins with, ``name``."""

    operation: str
    kind: str
    name: str
    prefixed: bool = False


class Rights:
    """The rights of the worker's user. Changed by the plain listener, where everything is allowed."""

    def __init__(self, servers: str) -> None:
        self._admin = AdminClient({"bootstrap.servers": servers})

    def grant(self, *grants: Grant) -> None:
        bindings = list(map(_binding, grants))
        for future in self._admin.create_acls(bindings).values():
            future.result()
        # The controller has the rights now, the broker a moment later.
        wait_until(lambda: all(self._known(_filter(binding)) for binding in bindings))

    def revoke(self, grant: Grant) -> None:
        wanted = _filter(_binding(grant))
        for future in self._admin.delete_acls([wanted]).values():
            assert future.result()
        wait_until(lambda: not self._known(wanted))

    def _known(self, wanted: AclBindingFilter) -> list[AclBinding]:
        found: list[AclBinding] = self._admin.describe_acls(wanted).result()
        return found


def _binding(grant: Grant) -> AclBinding:
    return AclBinding(
        ResourceType[grant.kind],
        grant.name,
        ResourcePatternType.PREFIXED if grant.prefixed else ResourcePatternType.LITERAL,
        "User:worker",
        "*",
        AclOperation[grant.operation],
        AclPermissionType.ALLOW,
    )


def _filter(binding: AclBinding) -> AclBindingFilter:
    return AclBindingFilter(
        binding.restype,
        binding.name,
        binding.resource_pattern_type,
        binding.principal,
        binding.host,
        binding.operation,
        binding.permission_type,
    )


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    folder = tmp_path_factory.mktemp("secured")
    with LocalKafka.start(folder, security=Security(USERS), java_options=QUICK_JAVA) as kafka:
        yield kafka


@pytest.fixture(scope="module")
def rights(secured) -> Rights:
    return Rights(secured.bootstrap_servers)


@pytest.fixture
def copy(make_copy, secured):
    copy = make_copy(secured.bootstrap_servers)
    copy.create_topics()
    return copy


@pytest.fixture
def count(secured, prefix, tmp_path) -> Iterator[Count]:
    made = Count(secured.bootstrap_servers, prefix, tmp_path)
    yield made
    made.end()


def start(app, settings: dict[str, Any], *arguments: str, **more):
    """A worker that connects with these client settings only."""
    client = {name: value for name, value in settings.items() if name != "bootstrap.servers"}
    servers = settings["bootstrap.servers"]
    return app.start(*arguments, bootstrap_servers=servers, client=json.dumps(client), **more)


def rights_of(app) -> list[Grant]:
    """The documented rights of an app without state."""
    return [
        Grant("READ", "TOPIC", app.input),
        Grant("WRITE", "TOPIC", app.output),
        Grant("CREATE", "TOPIC", f"{app.group}-", prefixed=True),
        Grant("WRITE", "TOPIC", f"{app.group}-", prefixed=True),
        Grant("READ", "GROUP", app.group),
        Grant("WRITE", "TRANSACTIONAL_ID", f"{app.group}-", prefixed=True),
    ]


def rights_of_stateful(app) -> list[Grant]:
    """The documented rights of an app with stores."""
    return [
        *rights_of(app),
        Grant("WRITE", "TOPIC", app.final),
        *(Grant(name, "TOPIC", f"{app.group}-", prefixed=True) for name in ("READ", "DELETE")),
        Grant("DESCRIBE_CONFIGS", "TOPIC", f"{app.group}-", prefixed=True),
    ]


def numbered(start: int, stop: int) -> list[str]:
    return [f"value-{number}" for number in range(start, stop)]


def last_words(worker) -> str:
    """The output of a failed worker after its log."""
    text: str = worker.log.read_text()
    start = re.search(r"^error: ", text, re.MULTILINE)
    assert start is not None, text
    return text[start.start() :].strip()


def as_worker(secured: LocalKafka, **more: Any) -> dict[str, Any]:
    return secured.secured_settings("worker") | more


def with_token(secured: LocalKafka, **more: Any) -> dict[str, Any]:
    return secured.secured_settings() | {"sasl.mechanism": "OAUTHBEARER"} | more


def unsigned_token(principal: str) -> str:
    now = int(time.time())
    parts = ({"alg": "none"}, {"sub": principal, "iat": now, "exp": now + 300})
    return ".".join(
        [*(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts), ""]
    )


# --- with the rights that are documented -----------------------------------------------------------------


@pytest.mark.parametrize("guarantee", ["exactly_once", "at_least_once"])
def test_an_app_runs_with_scram_and_tls_and_no_right_but_the_documented(copy, secured, rights, guarantee):
    rights.grant(*rights_of(copy))
    copy.produce(numbered(0, 1_000))
    worker = start(copy, as_worker(secured), guarantee=guarantee)
    copy.wait_until_consumed(30)
    assert copy.outputs() == Counter(numbered(0, 1_000))
    assert worker.stop() == 0


def test_an_app_with_stores_runs_is_queried_with_a_token_and_restores(count, secured, rights):
    rights.grant(*rights_of_stateful(count))
    token = "marker-of-the-http-token"
    settings = {"http_port": 0, "http_token": token, "group_protocol": "classic", "session_timeout": 6}
    workers = [start(count, as_worker(secured), **settings) for _ in range(2)]
    count.send([(f"key-{number % 20}", number) for number in range(200)])
    count.wait_until_consumed(60)
    addresses = [worker.events("http listening")[0]["url"].removeprefix("http://") for worker in workers]

    def answers() -> bool:
        # Each worker holds a part of the keys and requests the others from the other worker.
        found = [
            ask(address, f"/stores/counts/keys/key-{number}", headers=bearer(token), timeout=10)
            for address in addresses
            for number in range(20)
        ]
        return all(
            answer is not None and answer.status == 200 and json.loads(answer.body)["value"] == 10
            for answer in found
        )

    count.wait_for(answers, 30, "both workers answer for every key")
    for address in addresses:
        for path, status in (("/healthz", 200), ("/readyz", 200), ("/metrics", 401), ("/stores", 401)):
            answer = ask(address, path, headers={}, timeout=10)
            assert answer is not None
            assert (path, answer.status) == (path, status)
    url = ["--url", f"http://{addresses[0]}"]

    def answered() -> bool:
        # A worker in the middle of a rebalance answers with only that.
        asked = command("query", "counts", "key-3", *url, STREAMS_HTTP_TOKEN=token)
        return asked.returncode == 0 and json.loads(asked.stdout) == {"key": "key-3", "value": 10}

    count.wait_for(answered, 30, "the command is answered")
    refused = command("query", "counts", "key-3", *url)
    assert refused.returncode == 9
    assert "set STREAMS_HTTP_TOKEN to the app's http_token" in refused.stderr
    assert [worker.stop() for worker in workers] == [0, 0]
    # With an empty disk, from the changelogs.
    count.environment["STREAMS_STATE_DIR"] = str(count.state / "another")
    again = start(count, as_worker(secured), http_port=0, http_token=token)
    count.send([(f"key-{number}", 300) for number in range(20)])
    count.wait_until_consumed(60)
    count.wait_for(lambda: ("key-3", 11) in count.read(count.output), 30, "the count continues")
    assert again.stop() == 0
    for worker in (*workers, again):
        assert "marker-of" not in worker.log.read_text()


def test_no_secret_is_logged_at_any_level(copy, secured, rights):
    rights.grant(*rights_of(copy))
    copy.produce(numbered(0, 10))
    settings = as_worker(secured, debug="all", **{"ssl.key.password": "marker-of-the-key"})
    token = {"http_port": 0, "http_token": "marker-of-the-http-token"}
    worker = start(copy, settings, "--workers", "1", log_level="debug", **token)
    copy.wait_until_consumed(30)
    assert worker.stop() == 0
    log = worker.log.read_text()
    assert "SASL mechanism SCRAM-SHA-512" in log or "sasl.username" in log
    assert "marker-of" not in log


def test_a_token_of_the_clients_own_making_lets_an_app_in(copy, secured, rights):
    rights.grant(*rights_of(copy))
    copy.produce(numbered(0, 100))
    config = {"enable.sasl.oauthbearer.unsecure.jwt": True, "sasl.oauthbearer.config": "principal=worker"}
    worker = start(copy, with_token(secured, **config))
    copy.wait_until_consumed(30)
    assert copy.outputs() == Counter(numbered(0, 100))
    assert worker.stop() == 0


def test_every_kind_of_client_takes_tokens_from_a_function(copy, secured, rights):
    rights.grant(*rights_of(copy), Grant("READ", "TOPIC", copy.output))
    asked: list[str] = []

    def token(told: str) -> tuple[str, float]:
        asked.append(told)
        return unsigned_token("worker"), time.time() + 300

    broker = KafkaBroker(with_token(secured, oauth_cb=token, **{"sasl.oauthbearer.config": "told=1"}))
    use_every_client(broker, copy)
    assert set(asked) == {"told=1"}


def test_every_kind_of_client_takes_tokens_from_an_identity_provider(copy, secured, rights):
    rights.grant(*rights_of(copy), Grant("READ", "TOPIC", copy.output))

    class Provider(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = json.dumps({"access_token": unsigned_token("worker"), "expires_in": 300}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Provider) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/token"
        client = {
            "sasl.oauthbearer.method": "oidc",
            "sasl.oauthbearer.client.id": "worker",
            "sasl.oauthbearer.client.secret": "marker-of-the-client-secret",
            "sasl.oauthbearer.token.endpoint.url": url,
        }
        use_every_client(KafkaBroker(with_token(secured, **client)), copy)
        server.shutdown()


def use_every_client(broker: KafkaBroker, copy) -> None:
    admin = broker.admin()
    assert copy.output in admin.topics()
    for transactional_id in (None, f"{copy.group}-1"):
        producer = broker.producer(transactional_id=transactional_id)
        if transactional_id:
            producer.init_transactions(10)
            producer.begin()
        producer.produce(Output(copy.output, [b"key"], [b"value"], [-1]))
        producer.commit(10) if transactional_id else producer.flush(10)
        producer.close()
    assert sum(len(fetched) for fetched in read_to_end(broker, [copy.output])) == 2
    consumer = broker.consumer(GroupSettings(group=copy.group, protocol="classic"))
    consumer.commit(
        dict.fromkeys([item.partition for item in measure_lag(admin, copy.group, [copy.input])], 0)
    )
    consumer.close()
    assert {item.committed for item in measure_lag(admin, copy.group)} == {0}
    admin.close()


def command(*arguments: str, **environment: str) -> Done:
    """Run the ``streams`` command with the settings of this environment only."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STREAMS_")}
    return run_streams(*arguments, folder=HERE, environment=kept | environment)


def test_commands_connect_as_apps_do(copy, secured, rights, tmp_path):
    rights.grant(*rights_of(copy), Grant("WRITE", "TOPIC", copy.input), Grant("CREATE", "TOPIC", copy.input))
    settings = secured.secured_settings("worker")
    environment = {
        "STREAMS_BOOTSTRAP_SERVERS": settings.pop("bootstrap.servers"),
        "STREAMS_CLIENT": json.dumps(settings),
    }
    lines = tmp_path / "lines"
    lines.write_text("a\nb\n")
    ingested = command("ingest", str(lines), "--topic", copy.input, "--json", **environment)
    assert json.loads(ingested.stdout)["records"] == 2
    listed = command("topics", "--json", **environment)
    assert copy.input in {json.loads(line)["topic"] for line in listed.stdout.splitlines()}
    lag = command("lag", "copy_app:app", "--json", **environment, COPY_PREFIX=copy.prefix)
    assert sum(json.loads(line)["lag"] for line in lag.stdout.splitlines()) == 2
    described = command(
        "describe", "copy_app:app", "--format", "json", **environment, COPY_PREFIX=copy.prefix
    )
    assert copy.output in described.stdout
    assert "marker-of" not in described.stdout + described.stderr + lag.stderr + listed.stderr


# --- with too few rights ----------------------------------------------------------------------------------


MISSING = [
    ("READ TOPIC", "READ on topic '{input}'"),
    ("WRITE TOPIC", "WRITE on topic '{output}'"),
    ("CREATE TOPIC", "CREATE on topic '{group}-dead-letters'"),
    ("READ GROUP", "READ on group '{group}'"),
    ("WRITE TRANSACTIONAL_ID", "WRITE on transactional id '{group}-"),
]


@pytest.mark.parametrize(("missing", "says"), MISSING)
def test_a_missing_right_ends_the_worker_and_is_named_with_its_resource(copy, secured, rights, missing, says):
    granted = rights_of(copy)
    granted.remove(next(grant for grant in granted if f"{grant.operation} {grant.kind}" == missing))
    rights.grant(*granted)
    copy.produce(numbered(0, 10))
    worker = start(copy, as_worker(secured), group_protocol="consumer")
    assert worker.wait(30) == 10
    said = last_words(worker)
    wanted = says.format(input=copy.input, output=copy.output, group=copy.group)
    assert said.startswith(f"error: User:worker lacks the right {wanted}")
    operation = missing.split()[0]
    option = f"--{missing.split()[1].lower().replace('_', '-')} "
    assert re.search(
        rf"hint: grant .*\n +kafka-acls --add --allow-principal User:worker --operation {operation} {option}",
        said,
    )
    assert "marker-of" not in worker.log.read_text()


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
def test_a_group_that_may_be_looked_up_but_not_joined_is_named(copy, secured, rights, protocol):
    granted = [grant for grant in rights_of(copy) if grant.kind != "GROUP"]
    rights.grant(*granted, Grant("DESCRIBE", "GROUP", copy.group))
    worker = start(copy, as_worker(secured), group_protocol=protocol)
    assert worker.wait(30) == 10
    assert f"lacks the right READ on group '{copy.group}'" in last_words(worker)


def test_an_app_without_any_right_reports_all_rights_that_it_needs_for_topics_at_once(count, secured):
    worker = start(count, as_worker(secured), "--workers", "2")
    assert worker.wait(30) == 10
    said = last_words(worker)
    assert f"lacks the rights READ on topic '{count.input}', " in said
    own = "--operation CREATE --operation READ --operation WRITE"
    for line in (
        f"--operation READ --topic {count.input}",
        f"--operation WRITE --topic {count.output}",
        f"{own} --operation DELETE --topic {count.group}-counts-repartition",
        f"{own} --operation DESCRIBE_CONFIGS --topic {count.group}-counts-changelog",
    ):
        assert f"User:worker {line}\n" in f"{said}\n"


def test_internal_topics_that_may_not_be_created_are_named(count, secured, rights):
    rights.grant(*(grant for grant in rights_of_stateful(count) if grant.operation != "CREATE"))
    worker = start(count, as_worker(secured))
    assert worker.wait(30) == 10
    said = last_words(worker)
    for name in ("counts-repartition", "counts-changelog", "windows-changelog"):
        assert f"CREATE on topic '{count.group}-{name}'" in said


@pytest.mark.parametrize(
    ("revoked", "says"),
    [
        ("READ TOPIC", "READ on topic '{input}'"),
        ("WRITE TOPIC", "WRITE on topic '{output}'"),
        ("READ GROUP", "READ on group '{group}'"),
        ("WRITE TRANSACTIONAL_ID", "WRITE on transactional id '{group}-"),
    ],
)
def test_a_right_taken_away_while_a_worker_runs_ends_it(copy, secured, rights, revoked, says):
    granted = rights_of(copy)
    rights.grant(*granted)
    copy.produce(numbered(0, 10))
    worker = start(copy, as_worker(secured))
    copy.wait_until_consumed(30)
    rights.revoke(next(grant for grant in granted if f"{grant.operation} {grant.kind}" == revoked))
    copy.produce(numbered(10, 20))
    assert worker.wait(30) == 10
    wanted = says.format(input=copy.input, output=copy.output, group=copy.group)
    assert f"lacks the right {wanted}" in last_words(worker)


# --- not let in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (
            {"sasl.password": "marker-of-a-wrong-password"},
            "invalid credentials with SASL mechanism SCRAM-SHA-512",
        ),
        ({"ssl.ca.location": None}, "certificate verify failed"),
        ({"bootstrap.servers": None}, "connecting to a PLAINTEXT broker listener"),
    ],
)
def test_a_refused_connection_is_explained_within_seconds(secured, changed, says):
    if changed.get("bootstrap.servers", "") is None:
        changed = {"bootstrap.servers": secured.bootstrap_servers}
    settings = {name: value for name, value in (as_worker(secured) | changed).items() if value is not None}
    begun = time.monotonic()
    with pytest.raises(NotAuthenticated) as caught:
        KafkaBroker(settings).admin().topics()
    assert time.monotonic() - begun < 6
    assert says in str(caught.value)
    assert "marker-of" not in str(caught.value)


def test_a_wrong_password_ends_a_command_with_its_own_exit_code(secured):
    settings = as_worker(secured, **{"sasl.password": "marker-of-a-wrong-password"})
    ended = command(
        "topics", STREAMS_BOOTSTRAP_SERVERS=settings["bootstrap.servers"], STREAMS_CLIENT=json.dumps(settings)
    )
    assert ended.returncode == 10
    assert "check sasl.mechanism, and the user name and password or the token" in ended.stderr
    assert "marker-of" not in ended.stdout + ended.stderr


def test_a_password_in_the_address_of_an_identity_provider_is_not_logged(secured, caplog):
    client = {
        "sasl.oauthbearer.method": "oidc",
        "sasl.oauthbearer.client.id": "worker",
        "sasl.oauthbearer.client.secret": "marker-of-the-client-secret",
        "sasl.oauthbearer.token.endpoint.url": "http://worker:marker-of-the-url@127.0.0.1:1/token",
        "debug": "all",
    }
    caplog.set_level("DEBUG", "streams")
    with pytest.raises(Exception, match=secured.secured_settings()["bootstrap.servers"]) as caught:
        KafkaBroker(with_token(secured, **client)).admin().topics()
    assert "Failed to retrieve OIDC token" in caplog.text
    assert "marker-of" not in caplog.text + str(caught.value)


def test_a_setting_that_the_client_does_not_know_is_refused_without_its_value(secured):
    with pytest.raises(
        ConfigurationError, match=r'No such configuration property: "sasl\.pasword"'
    ) as caught:
        KafkaBroker(as_worker(secured, **{"sasl.pasword": "marker-of-a-password"})).admin()
    assert "marker-of" not in str(caught.value)
