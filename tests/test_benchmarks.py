from __future__ import annotations

import json
import sys
import time

import pytest
from rich.console import Console

from benchmarks.data import (
    FIRST_MILLISECOND,
    TEAMS,
    Chunk,
    Input,
    Part,
    Tally,
    generate_chunks,
    generate_small_chunks,
    generate_teams,
    write_input,
)
from benchmarks.jobs import COUNT_KEYS, COUNT_WINDOWS, JOIN, JSON, Job
from benchmarks.measure import (
    MeasurementFailed,
    Result,
    Sample,
    check_output,
    measured_window,
    middle,
    percentile,
    read_restoration,
    window,
)
from benchmarks.processes import Peer, PeerFailed
from benchmarks.replay import Cost, make_table as replay_table, middle as middle_cost
from benchmarks.report import Failure, make_table, ratio, write_results
from benchmarks.run import choose_works, count_records
from benchmarks.systems import JAVA, QUIX, RAW_CLIENT, THIS_RUNTIME
from benchmarks.task_queue import Figures, make_table as task_queue_table
from benchmarks.task_queue_systems import CELERY, DRAMATIQ, OURS
from benchmarks.works import WORKS
from streams.broker import NewTopic
from streams.broker.memory import MemoryBroker
from streams.broker.reading import read_to_end
from streams.records import FetchedLists, Output


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
    samples = [Sample(float(number), float(number), committed) for number, committed in enumerate(commits)]
    assert window(samples, 200, 300) is None


def test_there_is_no_window_without_cpu_time():
    assert window([Sample(1.0, 2.0, 201), Sample(1.005, 2.0, 300)], 200, 300) is None


@pytest.mark.parametrize(("first", "expected"), [(0, 90), (1, 90), (2, 25)])
def test_the_measured_window_leaves_out_the_warm_up_and_the_parts_that_a_system_is_not_given(first, expected):
    source = Input("requests", [Part(records, {}, {}) for records in (200, 70, 30)])
    samples = [
        Sample(float(committed), float(committed), committed) for committed in (0, 200, 210, 270, 275, 300)
    ]
    assert measured_window(samples, source, first).records == expected


def test_a_window_that_was_not_seen_is_a_failure():
    source = Input("requests", [Part(records, {}, {}) for records in (200, 70, 30)])
    with pytest.raises(MeasurementFailed, match="100 records are too few"):
        measured_window([Sample(0.0, 0.0, 0), Sample(1.0, 0.0, 300)], source, 0)


def test_restoring_is_read_from_json_lines_among_others():
    log = """not JSON
    {"event": "restore started", "task": "0-1", "records": 7, "level": "info"}
    {"event": "restore started", "task": "0-2", "records": 9}
    {"event": "worker started", "worker": {"id": 1}}
    [1]
    {"event": "restored", "task": "0-1", "records": 7, "seconds": 0.1}
    {"event": "restored", "task": "0-2", "rec"""
    assert read_restoration(log) == ({"0-1", "0-2"}, {"0-1": 7})


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
            "state_mb": None,
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


def test_works_with_state_are_not_given_to_the_raw_client():
    given = {
        work.name: work.systems for work in WORKS if not work.name.startswith(("avro", "lineage", "tracing"))
    }
    assert all(THIS_RUNTIME in systems and JAVA in systems for systems in given.values())
    assert [name for name, systems in given.items() if QUIX in systems] == [
        *("json eos", "json", "count eos", "latency 1k")
    ]
    assert [name for name, systems in given.items() if RAW_CLIENT in systems] == [
        *("json eos", "json", "latency 1k", "latency 10k")
    ]


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


def test_small_records_have_all_keys_once_in_every_round_each_time_in_another_order():
    chunks = generate_small_chunks(20_000)
    rounds = [[*next(chunks).keys, *next(chunks).keys] for _ in range(2)]
    assert len(set(rounds[0])) == 20_000
    assert sorted(rounds[0]) == sorted(rounds[1])
    assert rounds[0] != rounds[1]
    assert {len(key) for key in rounds[0]} == {8}


def test_every_address_has_a_team_from_before_the_first_request():
    (requests,) = generate_chunks(10_000)
    teams = generate_teams()
    assert len(teams.keys) == 10_240
    assert set(requests.keys) <= set(teams.keys)
    assert max(teams.timestamps) < min(requests.timestamps)


def test_an_input_has_parts_with_their_starts_and_tallies():
    broker = MemoryBroker()
    source = Input("requests")
    write_input(broker, source, generate_chunks(40_000), [20_000, 0, 10_000, 10_000], {"json": JSON.expected})
    (output,) = [list(read_to_end(broker, ["requests"]))]
    assert sum(map(len, output)) == 40_000
    assert [sum(part.starts.values()) for part in source.parts] == [0, 20_000, 20_000, 30_000]
    assert source.records_before(3) == 30_000
    assert source.tally("json", 1).records == sum(part.tallies["json"].records for part in source.parts[2:])
    failed = [status for chunk in generate_chunks(40_000) for status in chunk.statuses if status >= 400]
    assert source.tally("json", 0).records == len(failed)


REQUESTS = Chunk(
    keys=[b"10.0.0.1", b"10.0.0.2", b"10.0.0.1", b"10.0.0.1"],
    values=[b"{}"] * 4,
    timestamps=[FIRST_MILLISECOND + later for later in (0, 9_999, 10_000, 10_001)],
    statuses=[200, 404, 500, 399],
)
SECOND_WINDOW = FIRST_MILLISECOND + 10_000


def expected(job: Job) -> Tally:
    tally = Tally()
    tally.add(job.expected(REQUESTS))
    return tally


def output(*rows: tuple[bytes, bytes, int]) -> FetchedLists:
    """Records of one partition, from (key, value, timestamp)."""
    keys, values, timestamps = zip(*rows, strict=True)
    return FetchedLists("output", 0, keys, values, timestamps, range(len(rows)))


def test_the_last_count_of_each_window_counts_however_a_system_writes_it():
    right = output(
        (b"10.0.0.1", b'{"start":%d,"value":1}' % FIRST_MILLISECOND, 0),
        (b"10.0.0.1", b'{"key":"MTA=","start":%d,"end":1,"value":1}' % SECOND_WINDOW, 0),
        (b"10.0.0.2", b'{"value": 1, "start": %d}' % FIRST_MILLISECOND, 0),
        (b"10.0.0.1", b'{"start":%d,"value":2}' % SECOND_WINDOW, 0),
    )
    assert COUNT_WINDOWS.found([right]) == expected(COUNT_WINDOWS)
    assert COUNT_WINDOWS.found([right.slice(0, 3)]) != expected(COUNT_WINDOWS)


def test_counts_with_the_right_sum_in_wrong_windows_or_of_wrong_keys_are_wrong():
    for key, start in [(b"10.0.0.1", FIRST_MILLISECOND), (b"10.0.0.2", SECOND_WINDOW)]:
        wrong = output(
            (b"10.0.0.1", b'{"start":%d,"value":2}' % SECOND_WINDOW, 0),
            (b"10.0.0.2", b'{"start":%d,"value":1}' % FIRST_MILLISECOND, 0),
            (key, b'{"start":%d,"value":2}' % start, 0),
        )
        found = COUNT_WINDOWS.found([wrong])
        assert found.checksum != expected(COUNT_WINDOWS).checksum


def test_counts_of_keys_are_plain_numbers():
    rows = [(b"10.0.0.2", b"1", 0), (b"10.0.0.1", b"2", 0), (b"10.0.0.1", b"3", 0)]
    assert COUNT_KEYS.found([output(*rows)]) == expected(COUNT_KEYS)
    assert COUNT_KEYS.found([output(*rows[:2])]) != expected(COUNT_KEYS)


def test_a_joined_record_is_right_with_its_own_team_and_time():
    rows = [
        (key, b'{"ip":"%s","status":1,"team":"%s"}' % (key, TEAMS[key].encode()), timestamp)
        for key, timestamp in zip(REQUESTS.keys, REQUESTS.timestamps, strict=True)
    ]
    assert JOIN.found([output(*rows)]) == expected(JOIN)
    assert JOIN.found([output(*rows[1:])]) != expected(JOIN)
    others_team = (b"10.0.0.1", rows[0][1].replace(b'"team-1"', b'"team-2"'), rows[0][2])
    assert JOIN.found([output(others_team, *rows[1:])]) != expected(JOIN)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"4", None),
        (b"3", "accounts for 3 records, expected 4"),
        (b'"4"', "Expected"),
        (None, "truncated"),
    ],
)
def test_an_output_is_checked_from_the_topic(value, reason):
    broker = MemoryBroker()
    broker.admin().create_topics([NewTopic(name="output", partitions=1)])
    producer = broker.producer()
    producer.produce(Output("output", [b"key", b"key"], [b"1", value], [0, 0]))
    producer.flush(1.0)
    right = Tally()
    right.add(COUNT_KEYS.expected(Chunk([b"key"] * 4, [], [])))
    if reason is None:
        check_output(broker, "output", COUNT_KEYS, right)
    else:
        with pytest.raises(MeasurementFailed, match=f"wrong output: .*{reason}"):
            check_output(broker, "output", COUNT_KEYS, right)


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


def test_the_state_of_a_peer_is_what_it_keeps_on_disk(tmp_path):
    program = """
import pathlib, time
pathlib.Path("state").mkdir()
pathlib.Path("state", "store").write_bytes(bytes(100_000))
time.sleep(600)
"""
    with Peer([sys.executable, "-c", program], tmp_path / "peer.log") as peer:
        deadline = time.monotonic() + 30
        while peer.state_bytes() == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert 100_000 <= peer.state_bytes() < 200_000
    assert peer.state_bytes() == 0


def test_replays_are_compared_with_the_live_worker():
    costs = [
        Cost("copy", "live worker", 1000, 2.0, 5.0, [100.0]),
        Cost("copy", "replay run", 1000, 4.0, 9.0, [80.0, 90.0]),
    ]
    table = replay_table(costs)
    assert list(table.columns[5].cells) == ["1.00", "0.50"]
    assert list(table.columns[7].cells) == ["100", "80 + 90"]
    assert middle_cost([costs[1], costs[0], costs[0]._replace(cpu_seconds=3.0)]).cpu_seconds == 3.0


def test_task_queues_are_beside_this_library_with_ratios_and_reasons():
    table = task_queue_table(
        [
            Figures(OURS, jobs_per_second=20_000.0, keyed_per_second=15_000.0, p50_ms=10.0),
            Figures(CELERY, jobs_per_second=1_000.0, p50_ms=2.5),
            Figures(DRAMATIQ, missing="RabbitMQ is not installed"),
        ]
    )
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    text = captured.get()
    assert "1,000  (this library: 20.0 times)" in text
    assert "2.5  (this library: 4.0 times)" in text
    assert "Dramatiq on RabbitMQ: RabbitMQ is not installed" in text
    (keyed,) = (line for line in text.splitlines() if "jobs/s of 1,000 keys" in line)
    assert [cell.strip() for cell in keyed.strip("│").split("│")][1:] == ["15,000", "-", "-"]
