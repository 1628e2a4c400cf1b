"""Topics, offsets and groups of a Kafka cluster."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition as ClientPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    ConfigResource,
    ConfigSource,
    NewTopic as ClientTopic,
    OffsetSpec,
    ResourceType,
)

from streams.broker import GroupMember, Isolation, NewTopic, TopicDescription
from streams.broker.kafka.client_factory import REQUEST_SECONDS, ClientFactory, LastError, Settings, log
from streams.broker.kafka.errors import FORBIDDEN, TRANSIENT, UNREACHABLE
from streams.broker.kafka.group_description import group_members
from streams.broker.kafka.partitions import to_client, with_offsets
from streams.errors import (
    BrokerError,
    BrokerUnreachable,
    NotAuthenticated,
    NotAuthorized,
    Retriable,
    Right,
    TopicError,
)
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from concurrent.futures import Future

ELSEWHERE_SECONDS: Final = 3.0
"""The time-out for one broker, after which another one is tried, or failed authentication is reported."""

ANY_SECONDS: Final = 20.0
"""How long to retry requests to the controller, which may move to another broker meanwhile."""

OUTDATED_SECONDS: Final = 2.0
"""How long partitions' leaders, or topics, may be unknown before a request fails."""

LEADER_SECONDS: Final = 0.05
"""The additional time, per partition of a new topic, to wait for its leader."""

_LATEST: Final = OffsetSpec.latest()  # type: ignore[no-untyped-call]  # untyped in the library

_EARLIEST: Final = OffsetSpec.earliest()  # type: ignore[no-untyped-call]  # untyped in the library

NO_RECORD: Final = -1
"""The broker's answer if no record has the requested timestamp or a later one."""

_OUTDATED = {
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError._NOENT,  # noqa: SLF001 - as above
}


_SETTING_REFUSED = {KafkaError.INVALID_CONFIG, KafkaError.POLICY_VIOLATION}


class KafkaAdmin:
    """See ``streams.broker.Admin``."""

    def __init__(self, settings: Settings, factory: ClientFactory) -> None:
        self._factory = factory
        self._errors = LastError()
        self._servers = settings["bootstrap.servers"]
        self._settings = settings
        self._client = factory.make(AdminClient, settings | {"error_cb": self._errors})
        self._groups: dict[str, Consumer] = {}

    def topics(self) -> dict[str, TopicDescription]:
        return {
            name: TopicDescription(
                name,
                len(topic.partitions),
                min((len(part.replicas) for part in topic.partitions.values()), default=0),
            )
            for name, topic in self._metadata().topics.items()
            if topic.error is None
        }

    def partition_count(self, topic: str) -> int | None:
        found = self._metadata(topic).topics.get(topic)
        return len(found.partitions) if found is not None and found.error is None else None

    def topic_names(self) -> set[str]:
        """All topics that this client may see, including those whose metadata is temporarily unavailable."""
        return {
            name
            for name, topic in self._metadata().topics.items()
            if topic.error is None or topic.error.code() != KafkaError.UNKNOWN_TOPIC_OR_PART
        }

    def topic_ids(self, topics: Collection[str]) -> dict[str, str]:
        if not topics:
            return {}
        names = TopicCollection(list(topics))
        asked = self._ask(lambda timeout: self._client.describe_topics(names, request_timeout=timeout))
        found = {}
        for name, future in asked.items():
            try:
                found[name] = str(future.result().topic_id)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    right = Right("DESCRIBE", "topic", name)
                    raise self._failure(error, f"reading the id of topic {name}", right) from error
        return found

    def create_topics(self, topics: Collection[NewTopic]) -> set[str]:
        created = set()
        refused = []
        for name, future in self._created(topics).items():
            try:
                future.result()
                created.add(name)
            except KafkaException as error:
                if error.args[0].code() in FORBIDDEN:
                    refused.append(Right("CREATE", "topic", name))
                elif error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise self._failure(error, f"creating topic {name}") from error
        if refused:
            raise NotAuthorized("creating topics", refused, principal=self._factory.principal)
        partitions = sum(topic.partitions for topic in topics if topic.name in created)
        deadline = time.monotonic() + REQUEST_SECONDS + LEADER_SECONDS * partitions
        last = False
        while not self._all_led(created, patient=not last):
            if last:
                raise TopicError(
                    f"topics {sorted(created)} were created, but some partitions still have no leader",
                    hint="check that enough brokers are running, and try again",
                )
            last = time.monotonic() > deadline
            time.sleep(0.02)
        return created

    def _created(self, topics: Collection[NewTopic]) -> dict[str, Future[Any]]:
        """Create topics with all optional settings, or as many as the broker accepts; their answers."""
        answers: dict[str, Future[Any]] = {}
        left = {topic.name: (topic, list(topic.wished.items())) for topic in topics}
        while left:
            requested = self._request_topics(
                [
                    ClientTopic(
                        topic.name,
                        topic.partitions,
                        -1 if topic.replication_factor is None else topic.replication_factor,
                        config={**dict(wished), **topic.settings},
                    )
                    for topic, wished in left.values()
                ]
            )
            answers |= requested
            left = {
                name: (topic, wished[:-1])
                for name, (topic, wished) in left.items()
                if wished and _failed_by(requested[name], _SETTING_REFUSED)
            }
        return answers

    def _request_topics(self, topics: list[ClientTopic]) -> dict[str, Future[Any]]:
        """Create topics; their answers. It retries while all brokers are fenced, e.g. after a restart."""
        deadline = time.monotonic() + ANY_SECONDS
        answers: dict[str, Future[Any]] = {}
        while True:
            left = [topic for topic in topics if topic.topic not in answers or _fenced(answers[topic.topic])]
            answers |= self._ask(partial(self._create, left))
            if time.monotonic() > deadline or not any(map(_fenced, answers.values())):
                return answers
            time.sleep(0.1)

    def _create(self, topics: list[ClientTopic], timeout: float) -> dict[str, Future[Any]]:
        return self._client.create_topics(topics, operation_timeout=REQUEST_SECONDS, request_timeout=timeout)

    def delete_topics(self, names: Collection[str]) -> None:
        if not names:
            return
        for name, future in self._client.delete_topics(
            list(names), operation_timeout=REQUEST_SECONDS, request_timeout=REQUEST_SECONDS
        ).items():
            try:
                future.result()
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    right = Right("DELETE", "topic", name)
                    raise self._failure(error, f"deleting topic {name}", right) from error

    def delete_records(self, offsets: Mapping[TopicPartition, int]) -> None:
        if not offsets:
            return
        asked = self._client.delete_records(
            with_offsets(offsets), operation_timeout=REQUEST_SECONDS, request_timeout=REQUEST_SECONDS
        )
        for place, future in asked.items():
            try:
                future.result()
            except KafkaException as error:
                doing = f"deleting records of {place.topic}-{place.partition}"
                raise self._failure(error, doing, Right("DELETE", "topic", place.topic)) from error

    def require_rights(self, rights: Mapping[str, Collection[str]]) -> None:
        if not rights:
            return
        missing = []
        topics = TopicCollection(list(rights))
        asked = self._ask(
            lambda timeout: self._client.describe_topics(
                topics, include_authorized_operations=True, request_timeout=timeout
            )
        )
        for topic, future in asked.items():
            try:
                granted = future.result().authorized_operations
            except KafkaException as error:
                cause: KafkaError = error.args[0]
                if cause.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                    granted = ()
                elif cause.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                    continue
                else:
                    raise self._failure(error, f"reading the rights on topic {topic}") from error
            # Brokers before Kafka 2.3 do not report rights.
            if granted is not None:
                names = {operation.name for operation in granted}
                missing += [Right(wanted, "topic", topic) for wanted in rights[topic] if wanted not in names]
        if missing:
            raise NotAuthorized("checked before joining", missing, principal=self._factory.principal)

    def settings(self, topics: Collection[str]) -> dict[str, dict[str, str]]:
        return {
            topic: {name: entry.value or "" for name, entry in entries.items()}
            for topic, entries in self._described(topics).items()
        }

    def own_settings(self, topics: Collection[str]) -> dict[str, dict[str, str]]:
        return {
            topic: {
                name: entry.value or ""
                for name, entry in entries.items()
                if entry.source == ConfigSource.DYNAMIC_TOPIC_CONFIG.value
            }
            for topic, entries in self._described(topics).items()
        }

    def _described(self, topics: Collection[str]) -> dict[str, Any]:
        """The entries of each topic's settings, by name."""
        if not topics:
            return {}
        resources = [ConfigResource(ResourceType.TOPIC, topic) for topic in topics]
        found = {}
        deadline = time.monotonic() + OUTDATED_SECONDS
        while True:
            asked = self._ask(
                lambda timeout: self._client.describe_configs(resources, request_timeout=timeout)
            )
            unknown = any(_failed_by(answer, {KafkaError.UNKNOWN_TOPIC_OR_PART}) for answer in asked.values())
            # After a topic was created, some brokers know it later than others.
            if not unknown or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        for resource, future in asked.items():
            try:
                entries = future.result()
            except KafkaException as error:
                right = Right("DESCRIBE_CONFIGS", "topic", resource.name)
                raise self._failure(error, f"settings of topic {resource.name}", right) from error
            found[resource.name] = entries
        return found

    def end_offsets(
        self, partitions: Collection[TopicPartition], isolation: Isolation = "read_committed"
    ) -> dict[TopicPartition, int]:
        return self._offsets(dict.fromkeys(partitions, _LATEST), isolation)

    def beginning_offsets(self, partitions: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        return self._offsets(dict.fromkeys(partitions, _EARLIEST), "read_uncommitted")

    def without_leader(self, topics: Collection[str]) -> set[TopicPartition]:
        known = self._metadata().topics
        return {
            TopicPartition(name, number)
            for name in topics
            if name in known
            for number, part in known[name].partitions.items()
            if part.leader < 0
        }

    def offsets_for_times(
        self, times: Mapping[TopicPartition, int], isolation: Isolation = "read_committed"
    ) -> dict[TopicPartition, int]:
        specs = {place: OffsetSpec.for_timestamp(max(0, time)) for place, time in times.items()}
        found = self._offsets(specs, isolation, least=NO_RECORD)
        # A partition without a record at that time or later.
        after = [place for place, offset in found.items() if offset == NO_RECORD]
        return found | self.end_offsets(after, isolation)

    def committed_offsets(
        self, group: str, partitions: Collection[TopicPartition] | None = None
    ) -> dict[TopicPartition, int]:
        if partitions is None:
            partitions = [
                TopicPartition(name, number)
                for name, topic in self._metadata().topics.items()
                if not name.startswith("__")
                for number in topic.partitions
            ]
        return {
            TopicPartition(item.topic, item.partition): item.offset
            for item in self._committed(group, partitions)
        }

    def committed_metadata(
        self, group: str, partitions: Collection[TopicPartition]
    ) -> dict[TopicPartition, str]:
        return {
            TopicPartition(item.topic, item.partition): item.metadata
            for item in self._committed(group, partitions)
            if item.metadata
        }

    def group_members(self, group: str) -> list[GroupMember]:
        if not self._factory.has_answered:
            # If no broker answers at all, this says so, and soon.
            self._metadata()
        return group_members(group, self._settings, self._factory)

    def _committed(self, group: str, partitions: Collection[TopicPartition]) -> list[ClientPartition]:
        """The partitions that have a committed offset, with it and its metadata."""
        if not partitions:
            return []
        asked = to_client(partitions)
        if group not in self._groups:
            # The admin client's request for this crashes the process while the group's coordinator is loading
            # (librdkafka 2.16). A consumer that does not join the group can make the request too.
            self._groups[group] = self._factory.make(
                Consumer,
                self._settings
                | {"group.id": group, "isolation.level": "read_uncommitted", "enable.auto.commit": False},
            )
        deadline = time.monotonic() + REQUEST_SECONDS
        while True:
            try:
                found = self._groups[group].committed(asked, timeout=REQUEST_SECONDS)
            except KafkaException as error:
                if error.args[0].code() not in TRANSIENT or time.monotonic() > deadline:
                    right = Right("DESCRIBE", "group", group)
                    raise self._failure(error, f"offsets of group {group}", right) from error
                time.sleep(0.05)
            else:
                break
        return [item for item in found if item.error is None and item.offset >= 0]

    def broker_setting(self, name: str) -> str:
        """A setting of any broker; empty if it is unknown or may not be read."""

        def ask(timeout: float) -> Mapping[Any, Future[Any]]:
            asked: Mapping[Any, Future[Any]] = {}
            for broker in self._metadata().brokers:
                asked = self._client.describe_configs(
                    [ConfigResource(ResourceType.BROKER, str(broker))], request_timeout=timeout
                )
                if not any(_failed_by(answer, UNREACHABLE) for answer in asked.values()):
                    break
            return asked

        for answer in self._ask(ask).values():
            try:
                entry = answer.result().get(name)
            except KafkaException as error:
                if error.args[0].code() in UNREACHABLE:
                    break
                log.warning(
                    "broker setting %s cannot be read (%s): using the classic group protocol; "
                    "to choose it, set group_protocol",
                    name,
                    error.args[0].name(),
                )
                return ""
            return entry.value or "" if entry is not None else ""
        raise BrokerUnreachable(f"no broker of {self._servers} answers (broker setting {name})")

    def close(self) -> None:
        groups, self._groups = self._groups, {}
        for client in groups.values():
            client.close()

    def _ask(self, ask: Callable[[float], Mapping[Any, Future[Any]]]) -> Mapping[Any, Future[Any]]:
        """Repeat a request with increasing time-outs until a broker answers, or ``ANY_SECONDS`` have passed.

        The client sends most requests to the broker that it takes for the controller, and keeps waiting for
        that one when it is down. It learns of a new controller from the cluster's metadata.
        """
        if not self._factory.has_answered:
            # If no broker answers at all, this fails without waiting for the controller first.
            self._metadata()
        end = time.monotonic() + ANY_SECONDS
        timeout = ELSEWHERE_SECONDS
        while True:
            asked = ask(timeout)
            if time.monotonic() > end or not any(
                _failed_by(answer, UNREACHABLE) for answer in asked.values()
            ):
                return asked
            self._metadata()
            timeout = min(2 * timeout, REQUEST_SECONDS)

    def _metadata(self, topic: str | None = None) -> Any:
        """The metadata of the cluster or a topic; if one broker does not answer, another one is tried."""
        end = time.monotonic() + REQUEST_SECONDS
        while True:
            left = end - time.monotonic()
            try:
                found = self._client.list_topics(topic, timeout=min(left, ELSEWHERE_SECONDS))
            except KafkaException as error:
                if not self._factory.has_answered:
                    # After a failed authentication the client keeps trying, and only reports it to error_cb.
                    self._raise_refusal()
                if error.args[0].code() not in UNREACHABLE or left <= ELSEWHERE_SECONDS:
                    raise self._failure(error, "reading the metadata") from error
                # Some failures are immediate: limit the rate of retries.
                time.sleep(0.05)
            else:
                self._factory.has_answered = True
                return found

    def _all_led(self, names: set[str], *, patient: bool) -> bool:
        """Whether all partitions have leaders; no, if no broker answers and it is ``patient``."""
        try:
            topics = self._metadata().topics
        except BrokerUnreachable:
            # They are created: a broker has just answered.
            if patient:
                return False
            raise
        return all(
            name in topics
            and topics[name].partitions
            and all(part.leader >= 0 for part in topics[name].partitions.values())
            for name in names
        )

    def _offsets(
        self, specs: Mapping[TopicPartition, OffsetSpec], isolation: Isolation, *, least: int = 0
    ) -> dict[TopicPartition, int]:
        """One request to each broker that leads any of the partitions."""
        if not specs:
            return {}
        level = (
            IsolationLevel.READ_COMMITTED
            if isolation == "read_committed"
            else IsolationLevel.READ_UNCOMMITTED
        )
        wanted = {ClientPartition(*partition): spec for partition, spec in specs.items()}
        deadline = time.monotonic() + OUTDATED_SECONDS
        while True:
            asked = self._client.list_offsets(wanted, isolation_level=level, request_timeout=REQUEST_SECONDS)
            offsets: dict[TopicPartition, int] = {}
            unknown = ""
            for place, future in asked.items():
                doing = f"offsets of {place.topic}-{place.partition}"
                try:
                    offset = future.result().offset
                except KafkaException as error:
                    if error.args[0].code() not in _OUTDATED:
                        right = Right("DESCRIBE", "topic", place.topic)
                        raise self._failure(error, doing, right) from error
                    unknown = f"{doing}: {error.args[0].str()}"
                else:
                    offsets[TopicPartition(place.topic, place.partition)] = offset
                    if offset < least:
                        # If a broker does not answer in time, the client only reports a negative offset.
                        unknown = f"{doing}: no answer"
            if not unknown:
                return offsets
            if time.monotonic() > deadline:
                raise Retriable(unknown)
            # After a broker's restart, the client keeps using outdated leaders until it reads the metadata.
            self._metadata()
            time.sleep(0.05)

    def _raise_refusal(self) -> None:
        """Raise ``NotAuthenticated`` if failed authentication is why there was no answer so far."""
        # The client calls error_cb only during a poll.
        self._client.poll(0)
        if not self._errors.refusal:
            return
        text = self._factory.scrub(self._errors.refusal)
        hint = "check sasl.mechanism, and the user name and password or the token, in the setting client"
        if "SSL handshake" in text:
            hint = (
                "check, in the setting client, that security.protocol is right for this port, and that "
                "ssl.ca.location has the authority of the broker's certificate, which must be for this host"
            )
        raise NotAuthenticated(f"no connection to {self._servers}: {text}", hint=hint)

    def _failure(self, error: KafkaException, doing: str, *rights: Right) -> BrokerError:
        cause: KafkaError = error.args[0]
        if cause.code() in UNREACHABLE:
            self._client.poll(0)
            detail = f": {self._factory.scrub(self._errors.text)}" if self._errors.text else ""
            hint = "check the address, and that a broker runs there; to start one here: streams broker start"
            if not self._factory.complete:
                hint += "; a broker that requires TLS or SASL does not answer without (setting client)"
            return BrokerUnreachable(f"no broker answers at {self._servers} ({doing}){detail}", hint=hint)
        if cause.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
            return TopicError(f"{doing}: the topic or partition does not exist")
        if cause.code() in (
            KafkaError.INVALID_PARTITIONS,
            KafkaError.INVALID_REPLICATION_FACTOR,
            KafkaError.INVALID_CONFIG,
            KafkaError.TOPIC_EXCEPTION,
            KafkaError.POLICY_VIOLATION,
        ):
            return TopicError(f"{doing}: {cause.str()}")
        return self._factory.to_error(cause, doing, *rights)


def _failed_by(answer: Future[Any], codes: Collection[int]) -> bool:
    error = answer.exception()
    return isinstance(error, KafkaException) and error.args[0].code() in codes


def _fenced(answer: Future[Any]) -> bool:
    """Whether a topic was not created because all brokers are fenced, e.g. after all of them paused.

    A replication factor above the number of brokers has the same error code; only the text differs.
    """
    error = answer.exception()
    return (
        isinstance(error, KafkaException)
        and error.args[0].code() == KafkaError.INVALID_REPLICATION_FACTOR
        and "brokers are currently fenced" in error.args[0].str()
    )
