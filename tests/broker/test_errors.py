"""The mapping of client errors to the engine's errors."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from streams.broker.kafka.errors import classify
from streams.errors import Retriable


@pytest.mark.parametrize(
    "code",
    [
        KafkaError._TIMED_OUT,  # noqa: SLF001 - the library's public names for its local errors begin with _
        KafkaError._PARTIAL,  # noqa: SLF001 - as above
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_LEADER_FOR_PARTITION,
    ],
)
def test_transient_errors_are_retriable(code):
    assert isinstance(classify(KafkaError(code), "reading the metadata"), Retriable)
