"""An aggregate of a field that values do not have is an error when the topology is built."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypedDict

import msgspec
import pytest

from streams import App, Json, Session, Text, TopologyError, count, custom, first, latest, total
from streams.durations import milliseconds


class Struct(msgspec.Struct):
    path: str
    size: int


@dataclass
class Data:
    path: str
    size: int

    @cached_property
    def kilobytes(self) -> float:
        return self.size / 1000


class Named(NamedTuple):
    path: str
    size: int


class Typed(TypedDict):
    path: str
    size: int


class Other(msgspec.Struct, tag=True):
    team: str


class Tagged(msgspec.Struct, tag=True):
    path: str
    size: int


KINDS: list[Any] = [Struct, Data, Named, Typed, Struct | None]


def grouped(kind: Any) -> Any:
    return App("fields").stream("hits", key=Text(), value=Json(kind)).group_by_key()


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_that_no_value_has_is_refused_with_those_there_are(kind):
    with pytest.raises(TopologyError) as caught:
        grouped(kind).aggregate("traffic", hits=count(), bytes=total("sise"))
    assert "'traffic': total('sise') needs a field 'sise'" in str(caught.value)
    assert "has none: its fields are path, size" in str(caught.value)
    assert caught.value.hint == "did you mean 'size'?"


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_that_values_have_is_taken(kind):
    grouped(kind).aggregate("traffic", bytes=total("size"), first=first("path"))


def test_windows_and_tables_refuse_it_too():
    with pytest.raises(TopologyError, match="'visits': total"):
        grouped(Struct).window(Session(gap=milliseconds(5))).aggregate("visits", total("sise"))
    table = App("fields").table("hits", key=Text(), value=Json(Struct))
    with pytest.raises(TopologyError, match="'by-path': total"):
        table.group_by(lambda hit: hit.path).aggregate("by-path", total("sise"))


def test_what_a_function_is_annotated_to_return_is_known_too():
    def named(value: dict[str, Any]) -> Named:
        return Named(value["path"], value["size"])

    stream = App("fields").stream("hits", key=Text(), value=Json()).map(named)
    with pytest.raises(TopologyError, match="Named has none: its fields are path, size"):
        stream.group_by_key().aggregate("last", latest("zise"))


def test_a_field_of_one_of_several_types_may_be_meant():
    grouped(Tagged | Other).aggregate("bytes", total("size"))
    with pytest.raises(TopologyError, match="its fields are path, size, team"):
        grouped(Tagged | Other).aggregate("again", total("sise"))


def test_properties_are_fields_and_what_is_not_known_is_not_looked_at():
    grouped(Data).aggregate("kilobytes", total("kilobytes"))
    grouped(dict[str, int]).aggregate("any", total("sise"))
    App("fields").stream("hits", key=Text()).group_by_key().aggregate("any", total("sise"))
    add = custom(int, lambda so_far, size: so_far + size, name="sizes", of="sise")
    App("fields").stream("hits", key=Text()).group_by_key().aggregate("own", add)
    with pytest.raises(TopologyError, match="custom"):
        grouped(Struct).aggregate("own", add)
