"""Replays: runs with their results, kept comparisons, plans, resets that are not finished, and switches."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from streams import App, Json
from streams.broker import GroupSettings, NewTopic
from streams.broker.memory import MemoryBroker
from streams.errors import ConfigurationError
from streams.records import Output, TopicPartition
from streams.replay.bounded.bounds import Bounds, PartitionBounds
from streams.replay.bounded.journal import Journal
from streams.replay.bounded.log import ResultTopic, RunLog, RunRecord
from streams.replay.bounded.spool import Spool
from streams.replay.diff.fields import FieldChange
from streams.replay.diff.kept import LONGEST_VALUE, ComparisonLog, check_name, kept_comparison
from streams.replay.diff.result import Diff, Difference, TopicDiff
from streams.runtime import commit_numbers
from streams.runtime.switch_topic import AppInputs, SwitchTopic, SwitchWriter, first_record
from tests.console.pages import browsing

if TYPE_CHECKING:
    from pathlib import Path


def shop(**settings: Any) -> App:
    app = App("shop", **settings)
    app.stream("orders", value=Json(dict[str, Any])).filter(bool, name="keep").to("out")
    return app


@pytest.fixture
def broker() -> MemoryBroker:
    made = MemoryBroker()
    made.admin().create_topics([NewTopic(name="orders", partitions=2), NewTopic(name="out", partitions=2)])
    producer = made.producer()
    producer.produce(Output("orders", [b"a", b"b"], [b"{}", b"{}"], [1_000, 2_000]))
    producer.flush(10)
    return made


def record(name: str, state: Any, records: int) -> RunRecord:
    return RunRecord(
        name=name,
        state=state,
        begun=1_700_000_000_000,
        begin="earliest",
        end="latest",
        records=records,
        results={f"out-{name}": ResultTopic(topic="out", id="x", records=records)},
    )


def test_runs_are_listed_with_their_results_and_what_only_this_machine_knows(broker, tmp_path):
    app = shop(state_dir=str(tmp_path))
    log = RunLog(broker, "shop")
    log.write(record("november", "complete", 1_234))
    log.write(record("december", "running", 0))
    bounds = Bounds({TopicPartition("orders", 0): PartitionBounds(0, 10, 50)}, {}, "all of it")
    folder: Path = tmp_path / "shop-replay" / "here"
    Journal(Spool(folder)).begin("identity", 1_700_000_000_000, bounds)
    with browsing(app, broker) as browser:
        page = browser.wait("/apps/shop/replays", "november complete earliest latest")
        assert "1,234 out-november 1,234" in page
        assert "december interrupted" in page
        assert "here interrupted by offsets" in page
        assert "0 of 2 tasks complete" in page
        assert "of this machine, all are listed" in page
        own = browser.wait("/apps/shop/replays/runs/here", "orders-0 10 50 40 10")
        assert "Warm-up all of it" in own
        assert "this is not it" in browser.wait("/apps/shop/replays/runs/december", "No command works on it")
        assert browser.client.get("/apps/shop/replays/runs/none").status_code == 404


def comparison(*fields: FieldChange) -> Diff:
    topic = TopicDiff("out", "each record", 10, 11, 8, Counter(changed=2, added=1), Counter(total=2))
    topic.samples.append(Difference("changed", "alice", "2026-11-30T08:00:00Z", list(fields)))
    noise = TopicDiff("out", "each record", 10, 10, 9, Counter(changed=1), Counter(id=1))
    return Diff(topics=[topic, TopicDiff("big", "each record", 5, 5, 5)], noise=[noise])


def keep(broker: MemoryBroker, name: str, diff: Diff) -> None:
    made = kept_comparison(
        name, diff, time=1_700_000_000_000, new="shop_v2:app", old="shop:app", facts=[("range", "10 offsets")]
    )
    ComparisonLog(broker, "shop").write(made)


def test_a_kept_comparison_is_shown_with_masked_fields(broker):
    keep(broker, "v2", comparison(FieldChange("total", 1, 2), FieldChange("buyer.email", "a@b", "c@d")))
    with browsing(shop(), broker, masked=["email"]) as browser:
        assert "v2 different shop_v2:app shop:app" in browser.wait("/apps/shop/replays", "v2 different")
        page = browser.wait("/apps/shop/replays/comparisons/v2", "3 records differ , in 1 of 2 topics")
        assert "8 equal 2 changed 1 added 0 missing" in page
        assert "total 1 2" in page
        assert 'buyer.email "•••" "•••"' in page
        assert "a@b" not in page
        assert "out id Two runs of the old program have other values." in page
        assert "Equal Topic Compared Records big each record 5" in page
        assert browser.client.get("/apps/shop/replays/comparisons/none").status_code == 404


def test_values_that_are_too_long_are_not_kept_and_names_are_checked(broker):
    keep(broker, "long", comparison(FieldChange("total", "x" * (LONGEST_VALUE + 1), 2)))
    (found,) = ComparisonLog(broker, "shop").read().values()
    assert found.topics[0]["samples"][0]["fields"][0]["old"].startswith("(too long to be kept: 4,003 bytes")
    for name in ("", "a/b", "x" * 101, "a\n"):
        with pytest.raises(ConfigurationError):
            check_name(name)


def test_a_plan_says_what_would_be_read_and_reads_no_files_of_the_server(broker, tmp_path):
    secret = tmp_path / "offsets.json"
    secret.write_text('{"orders": {"0": 1}}')
    with browsing(shop(state_dir=str(tmp_path)), broker) as browser:
        page = browser.wait("/apps/shop/replays/plan?from=earliest&as=try", "offsets to read")
        assert "streams replay run MODULE:APP --from earliest --as try" in page
        assert "2 offsets to read, warm-up included 2 partitions" in page
        page = browser.text(f"/apps/shop/replays/plan?from={secret}")
        assert "is not a position in a topic" in page
        page = browser.wait("/apps/shop/replays/plan?kind=reset&from=earliest", "has no committed offsets")
        assert "nothing was processed" in page


def test_a_reset_that_is_not_finished_is_the_first_thing_to_see(broker):
    epoch = time.time_ns() // 1_000_000
    consumer = broker.consumer(GroupSettings(group="shop", protocol="classic"))
    place = TopicPartition("orders", 0)
    consumer.commit({place: 1}, {place: commit_numbers.marked("", epoch)})
    consumer.close()
    with browsing(shop(), broker) as browser:
        page = browser.wait("/apps/shop/replays", "A reset is not finished.")
    assert "has marked 1 partitions" in page


def test_the_phase_of_a_switch_and_who_emits(broker):
    topic = SwitchTopic(broker, "visits")
    topic.create()
    writer = SwitchWriter(broker, topic)
    writer.change(lambda _: first_record("shop"))
    for name in ("shop", "shop-v2"):
        writer.describe(name, AppInputs(["orders"], []))
    with browsing(shop(blue_green="visits"), broker) as browser:
        page = browser.wait("/apps/shop/replays", "shop emits.")
        assert "shop-v2 muted none 2" in page
        now = time.time_ns() // 1_000_000
        topic.read(to_end=True)
        writer.change(lambda known: known and known.begin("shop-v2", 30.0, now))
        page = browser.wait("/apps/shop/replays", "Pair visits switching")
        assert "freezing advancing sealing shop-v2 emits" in page
        assert "From shop to shop-v2" in page
    writer.close()
    topic.close()
