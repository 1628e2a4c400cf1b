"""Change events as JSON, with rows of a type."""

from __future__ import annotations

import msgspec
import pytest

from streams.connectors.change import Change, ChangeSource
from streams.connectors.change_json import ChangeJson

SOURCE = b'"source":{"db":"shop","schema":"public","table":"customers"}'


class Customer(msgspec.Struct):
    id: int
    name: str


def read(payload: bytes) -> Change[Customer]:
    return next(iter(ChangeJson(Customer).deserialize([payload])))


def test_a_deletion_of_which_only_the_key_is_known_is_read_with_a_type_of_complete_rows():
    change = read(b'{"op":"d","before":{"id":7},"after":null,"ts_ms":5,' + SOURCE + b"}")
    assert (change.op, change.before, change.row, change.ts_ms) == ("d", None, None, 5)
    assert change.source == ChangeSource(db="shop", schema="public", table="customers")


def test_columns_that_kafka_connect_fills_with_null_in_before_do_not_matter():
    change = read(b'{"op":"u","before":{"id":7,"name":null},"after":{"id":7,"name":"Ann"},' + SOURCE + b"}")
    assert (change.before, change.after) == (None, Customer(7, "Ann"))


def test_a_complete_before_is_read():
    change = read(b'{"op":"d","before":{"id":7,"name":"Ann"},' + SOURCE + b"}")
    assert change.before == Customer(7, "Ann")


@pytest.mark.parametrize("before", [b"null", b'{"id":7}'])
def test_an_incomplete_row_afterwards_is_refused(before):
    with pytest.raises(msgspec.ValidationError, match=r"`name` - at `\$.after`"):
        read(b'{"op":"u","before":' + before + b',"after":{"id":7},' + SOURCE + b"}")
