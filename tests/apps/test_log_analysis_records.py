"""The app's records: structs, schemas, and conversions between them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, strategies as st

from apps.log_analysis.alert import Alert
from apps.log_analysis.hit import Hit, parse
from apps.log_analysis.top import LENGTH, PathHits, TopPaths, ranked
from apps.log_analysis.topology import avro
from apps.log_analysis.traffic import NOBODY, Owner, TeamTraffic, Traffic, section
from apps.log_analysis.visit import Visit

if TYPE_CHECKING:
    from random import Random

SCHEMAS = Path(__file__).parents[2] / "schemas"

LINE = '::1 - - [17/May/2015:10:05:03 +0000] "GET /a HTTP/1.1" 200 9 "-" "curl/8"'
TRAFFIC = Traffic("/a", 0, 60_000, 4, 400, 1, 0.25, 99.5, 101.0)
EXAMPLES: list[Any] = [
    parse(LINE),
    TRAFFIC,
    TopPaths(0, 60_000, [PathHits("/a", 2), PathHits("/b", 1)]),
    Owner("web", 0),
    TeamTraffic("web", 0, 60_000, 4, 400, 1),
    Alert("/a", "raised", 60_000, 0.25),
    Visit("::1", 0, 1_000, 1_000, 2, 9, "/a", "/b"),
]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: type(example).__name__)
def test_each_record_has_a_schema_with_its_fields_that_carries_it(example):
    kind = type(example)
    definition = json.loads((SCHEMAS / f"log_analysis.{kind.__name__}.avsc").read_text(encoding="utf-8"))
    assert f"{definition['namespace']}.{definition['name']}" == f"log_analysis.{kind.__name__}"
    assert [field["name"] for field in definition["fields"]] == list(kind.__struct_fields__)
    assert definition["doc"]
    assert all(field["doc"] for field in definition["fields"])
    serde = avro(kind)
    assert list(serde.deserialize(list(serde.serialize([example])))) == [example]


def test_there_is_no_schema_without_a_record():
    names = {path.name for path in SCHEMAS.glob("log_analysis.*.avsc")}
    assert names == {f"log_analysis.{type(example).__name__}.avsc" for example in EXAMPLES}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/products/oak-lamp", "/products"),
        ("/products/", "/products"),
        ("/products", "/products"),
        ("/", "/"),
        ("//products", "/"),
        ("*", "*"),
        ("", ""),
    ],
)
def test_the_section_of_a_path_is_its_first_part(path, expected):
    assert section(path) == expected


def test_a_paths_traffic_is_its_owners_or_nobodys():
    assert TeamTraffic.of(TRAFFIC, Owner("web", 0)) == TeamTraffic("web", 0, 60_000, 4, 400, 1)
    assert TeamTraffic.of(TRAFFIC, None).team == NOBODY


def test_the_traffic_of_several_paths_adds_up():
    one = TeamTraffic("web", 0, 60_000, 4, 400, 1)
    assert one.plus(TeamTraffic("web", 0, 60_000, 1, 20, 0)) == TeamTraffic("web", 0, 60_000, 5, 420, 1)


@given(st.lists(st.integers(1, 5), max_size=40), st.randoms(use_true_random=False))
def test_a_ranking_is_that_of_sorting_all_paths_in_whichever_order_they_come(counts, random: Random):
    places = [PathHits(f"/{number}", hits) for number, hits in enumerate(counts)]
    random.shuffle(places)
    best: list[PathHits] = []
    for place in places:
        best = ranked(best, Traffic(place.path, 0, 0, place.hits, 0, 0, 0, 0, 0))
    assert best == sorted(places, key=lambda place: (-place.hits, place.path))[:LENGTH]


def hit(time: int, path: str) -> Hit:
    text = LINE.replace("/a", path).replace(":03", f":{time:02}")
    return parse(text)


@given(
    st.lists(st.tuples(st.integers(0, 59), st.sampled_from(["/a", "/b", "/c"])), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
)
def test_visits_join_in_any_order_to_the_same_visit(pages, random: Random):
    hits = [hit(second, path) for second, path in sorted(pages)]
    visits = [Visit.of(each) for each in hits]
    while len(visits) > 1:
        one = visits.pop(random.randrange(len(visits)))
        other = visits.pop(random.randrange(len(visits)))
        visits.append(one.joined(other))
    (visit,) = visits
    assert visit == Visit(
        client="::1",
        start=hits[0].time,
        end=hits[-1].time,
        duration=hits[-1].time - hits[0].time,
        hits=len(hits),
        bytes=9 * len(hits),
        first_path=hits[0].path,
        last_path=hits[-1].path,
    )
