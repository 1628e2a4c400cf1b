from __future__ import annotations

import json
import sys

import pytest
from rich.console import Console

from benchmarks.data import generate_chunks
from benchmarks.measure import Result, Sample, middle, percentile, window
from benchmarks.processes import Peer, PeerFailed
from benchmarks.report import Failure, make_table, ratio, write_results
from benchmarks.run import choose_works, count_records
from benchmarks.systems import JAVA, RAW_CLIENT, THIS_RUNTIME


def result(system: str, cpu_rate: float | None = None, p50: float | None = None) -> Result:
    return Result(work="json", system=system, records=1_000, records_per_cpu_second=cpu_rate, p50_ms=p50)


def test_a_percentile_is_the_nearest_rank():
    values = [float(number) for number in range(100, 0, -1)]
    assert percentile(values, 50) == 50
    assert percentile(values, 99) == 99
    assert percentile(values, 100) == 100
    assert percentile([7.0], 50) == percentile([7.0], 99) == 7


def test_a_percentile_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_the_window_is_between_the_first_commit_past_the_warm_up_and_the_last_record():
    samples = [
        Sample(0.0, 5.0, 0),
        Sample(1.0, 6.0, 200),
        Sample(2.0, 6.5, 230),
        Sample(3.0, 7.5, 290),
        Sample(4.0, 8.0, 300),
        Sample(5.0, 8.1, 300),
    ]
    assert window(samples, 200, 300) == (70, 2.0, 1.5)


@pytest.mark.parametrize("commits", [[], [0, 100], [0, 300], [0, 230]])
def test_there_is_no_window_before_the_end_or_within_one_commit(commits):
    samples = [Sample(float(number), 0.0, committed) for number, committed in enumerate(commits)]
    assert window(samples, 200, 300) is None


def test_the_middle_of_several_rounds_counts():
    rounds = [result(THIS_RUNTIME, rate) for rate in (5.0, 1.0, 3.0)]
    assert middle(rounds).records_per_cpu_second == 3.0
    assert middle(rounds[:1]).records_per_cpu_second == 5.0
    assert middle([result(THIS_RUNTIME, p50=delay) for delay in (9.0, 7.0, 8.0)]).p50_ms == 8.0


def test_ratios_are_of_the_cpu_rates_on_the_same_work():
    results = [result(THIS_RUNTIME, 300.0), result(JAVA, 200.0), result(RAW_CLIENT)]
    assert ratio(results[0], results, JAVA) == 1.5
    assert ratio(results[0], results, RAW_CLIENT) is None
    assert ratio(results[0], [], JAVA) is None


def test_results_are_written_with_null_for_what_does_not_apply(tmp_path):
    path = tmp_path / "bench.json"
    write_results(path, [result(THIS_RUNTIME, 123_456.7, p50=1.234)])
    assert json.loads(path.read_text()) == [
        {
            "work": "json",
            "system": THIS_RUNTIME,
            "records": 1_000,
            "records_per_second": None,
            "records_per_cpu_second": 123_457,
            "peak_rss_mb": None,
            "p50_ms": 1.23,
            "p99_ms": None,
        }
    ]


def test_the_table_names_every_system_and_what_failed():
    console = Console(width=120)
    results = [result(THIS_RUNTIME, 300.0), result(JAVA, 200.0)]
    with console.capture() as capture:
        console.print(make_table(results, [Failure("json", RAW_CLIENT, "gone")]))
    lines = capture.get().splitlines()
    (own,) = [line for line in lines if f" {THIS_RUNTIME} " in line]
    assert "1.50x" in own
    (failed,) = [line for line in lines if f" {RAW_CLIENT} " in line]
    assert "none" in failed


def test_works_are_chosen_by_the_beginning_of_their_name():
    assert [work.name for work in choose_works("json")] == ["json eos", "json"]
    assert [work.name for work in choose_works("json e")] == ["json eos"]
    assert choose_works("nothing") == []


def test_the_number_of_records_is_rounded_up_to_whole_chunks():
    assert count_records("1000000") == 1_000_000
    assert count_records("1") == 10_000
    for nonsense in ("0", "-1", "many"):
        with pytest.raises(ValueError, match=f"RECORDS={nonsense}"):
            count_records(nonsense)


def test_the_input_is_the_same_each_time_and_as_described():
    (chunk,) = generate_chunks(10_000)
    assert [chunk] == list(generate_chunks(10_000))
    records = [json.loads(value) for value in chunk.values]
    assert 220 < sum(map(len, chunk.values)) / len(records) < 240
    for record, key, timestamp, status in zip(
        records, chunk.keys, chunk.timestamps, chunk.statuses, strict=True
    ):
        assert (record["ip"].encode(), record["ts"], record["status"]) == (key, timestamp, status)
    assert chunk.timestamps[-1] - chunk.timestamps[0] == 999
    assert 0.13 < sum(status >= 400 for status in chunk.statuses) / len(records) < 0.17


def test_a_peer_that_ends_early_is_reported_with_its_last_words(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('out of luck')"]
    with Peer(command, tmp_path / "peer.log") as peer, pytest.raises(PeerFailed, match="out of luck"):
        peer.wait(30)


def test_a_peer_ends_with_its_context_and_leaves_no_folder(tmp_path):
    with Peer([sys.executable, "-c", "import time; time.sleep(600)"], tmp_path / "peer.log") as peer:
        peer.check()
        assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(PeerFailed, match="exit code -15"):
        peer.check()
    assert [path.name for path in tmp_path.iterdir()] == ["peer.log"]
