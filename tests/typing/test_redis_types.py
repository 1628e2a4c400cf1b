"""The types of the values that Redis' sources have: checked by mypy and pyright in ``make check``."""

from __future__ import annotations

from typing import assert_type

import msgspec

from streams import App, Bytes, Stream
from streams.connectors.redis import RedisChannel, RedisList, RedisStream

URL = "redis://127.0.0.1:6379/0"


class Order(msgspec.Struct):
    id: int


def test_values_are_text_of_a_type_or_what_a_serde_reads():
    app = App("types")
    assert_type(app.source(RedisStream(URL, "s"), store="a"), Stream[str, dict[str, str]])
    assert_type(app.source(RedisStream(URL, "s", Order), store="b"), Stream[str, Order])
    assert_type(app.source(RedisStream(URL, "s", field="n"), store="c"), Stream[str, str])
    assert_type(app.source(RedisStream(URL, "s", int, field="n"), store="d"), Stream[str, int])
    assert_type(app.source(RedisStream(URL, "s", value=Bytes(), field="n"), store="e"), Stream[str, bytes])
    assert_type(app.source(RedisList(URL, "l"), store="f"), Stream[bytes, str])
    assert_type(app.source(RedisList(URL, "l", Order), store="g"), Stream[bytes, Order])
    assert_type(app.source(RedisChannel(URL, "c"), store="h"), Stream[str, str])
    assert_type(app.source(RedisChannel(URL, patterns="c*"), store="i"), Stream[str, str])
    assert_type(app.source(RedisChannel(URL, "c", value=Bytes()), store="j"), Stream[str, bytes])
