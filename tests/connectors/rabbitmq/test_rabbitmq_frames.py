"""AMQP's encoding of properties, and which messages are confirmed: without a server."""

from __future__ import annotations

import random
import struct

from hypothesis import given, strategies as st

from streams.connectors.rabbitmq.confirms import Confirms
from streams.connectors.rabbitmq.message_properties import as_header_value, decoded, encoded, table

CONTENT = b"\x00\x3c\x00\x00" + bytes(8)
"""What is before the properties in a content header."""

TEXTS = st.binary(max_size=255)
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        "content_type": TEXTS,
        "priority": st.integers(0, 255),
        "correlation_id": TEXTS,
        "message_id": TEXTS,
        "timestamp": st.integers(0, 2**63 - 1),
        "app_id": TEXTS,
    },
)
HEADERS = st.dictionaries(
    st.text(max_size=40), st.none() | st.binary(max_size=100) | st.text().map(str.encode)
)


@given(PROPERTIES, HEADERS)
def test_properties_and_headers_are_read_as_they_were_written(properties, headers):
    flags, values = encoded({**properties, "headers": table(headers.items())})
    found = decoded(CONTENT + flags + values)
    assert {name: as_header_value(value) for name, value in found.pop("headers").items()} == headers
    assert found == properties


def test_headers_that_python_cannot_express_stay_as_bytes_and_the_other_properties_are_read():
    beyond = b"\x02atT" + struct.pack(">Q", 2**60)
    unreadable = struct.pack(">I", len(beyond)) + beyond
    flags, values = encoded({"headers": unreadable, "message_id": b"m"})
    assert decoded(CONTENT + flags + values) == {
        "headers": {"rabbitmq.headers": unreadable},
        "message_id": b"m",
    }


@given(st.integers(0, 2**32))
def test_confirms_may_come_in_any_order_and_for_several_at_once(seed):
    chance = random.Random(seed)
    confirms = Confirms()
    confirms.published = 40
    open_tags = set(range(1, 41))
    negative: set[int] = set()
    while open_tags:
        assert not confirms.complete
        assert confirms.count == 40 - len(open_tags)
        tag = chance.choice(sorted(open_tags))
        multiple, positive = chance.random() < 0.3, chance.random() < 0.8
        settled = {each for each in open_tags if each <= tag} if multiple else {tag}
        if not positive:
            negative |= settled
        confirms.settle(tag, multiple, positive)
        open_tags -= settled
    assert confirms.complete
    assert set(confirms.negative) == negative
