"""Results that are for different partitions need not be merged, and have the same order then."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings as hypothesis_settings, strategies as st

from streams.partitioning import partition_for
from streams.records import Output
from streams.replay.bounded import places as placing
from streams.replay.bounded.places import Places, apart
from streams.replay.bounded.spool import Spool, SpoolFile, read_places, task_file
from streams.runtime.task import TaskId

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from streams.replay.bounded.rows import SpooledRows

COUNT = 4
KEYS = [b"key-%d" % number for number in range(40)]

ROWS = st.lists(
    st.tuples(st.sampled_from([*KEYS, None]), st.integers(0, 9), st.none() | st.integers(0, COUNT - 1)),
    max_size=25,
)
"""Keys, times and chosen partitions."""


def by_partition(pieces: Iterable[SpooledRows], only: int | None = None) -> dict[int, list[bytes | None]]:
    found: dict[int, list[bytes | None]] = defaultdict(list)
    for rows in pieces:
        chosen = rows.partitions or [None] * len(rows)
        for key, value, place in zip(rows.keys, rows.values, chosen, strict=True):
            number = partition_for(key or b"", COUNT) if place is None else place
            assert only is None or number == only
            found[number].append(value)
    return found


@given(
    files=st.lists(st.tuples(st.none() | st.integers(0, COUNT - 1), ROWS), min_size=1, max_size=4),
    choosing=st.booleans(),
    known=st.integers(0, 12),
)
@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_partition_has_the_same_order_as_if_everything_was_merged(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[tuple[int | None, list[tuple[bytes | None, int, int | None]]]],
    choosing: bool,
    known: int,
):
    spool = Spool(tmp_path_factory.mktemp("run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(placing, "KNOWN_KEYS", known)
        for number, (only, rows) in enumerate(files):
            file = SpoolFile(spool.results("t") / task_file(TaskId(0, number)), COUNT)
            for row, (key, time, place) in enumerate(rows):
                # Some files have records for one partition only.
                if only is not None and key is not None and partition_for(key, COUNT) != only:
                    continue
                chosen = only if place is not None and only is not None else place
                output = Output(
                    "t",
                    [key],
                    [b"%d:%d" % (number, row)],
                    [time],
                    partitions=[chosen] if choosing and chosen is not None else None,
                )
                file.append(output, keyless=number if only is None else only)
            file.close()
    found: dict[int, list[bytes | None]] = {}
    for only, pieces in spool.read_apart("t"):
        group = by_partition(pieces, only)
        assert not group.keys() & found.keys()
        found |= group
    assert found == by_partition(spool.read_results("t"))


def test_files_for_different_partitions_are_apart(tmp_path: Path):
    spool = Spool(tmp_path)
    keys = {place: [key for key in KEYS if partition_for(key, COUNT) == place] for place in range(COUNT)}
    wanted = {0: keys[1], 1: keys[0] + keys[2], 2: keys[3], 3: keys[2]}
    for number, own in wanted.items():
        file = SpoolFile(spool.results("t") / task_file(TaskId(0, number)), COUNT)
        for _ in range(3):
            file.append(Output("t", own, own, [5] * len(own)), keyless=number)
        file.close()
    assert [only for only, _ in spool.read_apart("t")] == [1, 3, None]


def test_a_file_says_which_partitions_its_records_are_for(tmp_path: Path):
    file = SpoolFile(tmp_path / "0", COUNT)
    key = next(key for key in KEYS if partition_for(key, COUNT) == 1)
    file.append(Output("t", [key, None], [b"1", b"2"], [1, 2]), keyless=3)
    file.close()
    assert read_places(tmp_path / "0") == [1, 3]
    other = SpoolFile(tmp_path / "1")
    other.append(Output("t", [key], [b"1"], [1]))
    other.close()
    assert read_places(tmp_path / "1") is None


def test_many_keys_are_for_any_partition(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(placing, "KNOWN_KEYS", 3)
    own = [key for key in KEYS if partition_for(key, COUNT) == 2]
    places = Places(COUNT)
    places.note(own[:3], None)
    assert places.found == [2]
    assert places.knows(own[:3])
    assert not places.knows(own[:4])
    places.note(own[:4], None)
    assert not places.knows(own[:3])
    assert places.found is None


def test_groups_have_what_is_joined_by_any_file():
    assert apart({"a": [0], "b": [1], "c": [2, 1], "d": [3], "e": [0, 3]}) == [["b", "c"], ["a", "d", "e"]]
    assert apart({"a": [0], "b": None, "c": [1]}) == [["a", "b", "c"]]
    assert apart({"a": []}) == [["a"]]
