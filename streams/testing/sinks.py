"""The contract of sink connectors as tests: subclass it, and pytest runs them on your sink.

::

    class TestMySink(KeyedSinkContract, RefusingSinkContract):
        @pytest.fixture(autouse=True)
        def target(self, tmp_path):
            self.path = tmp_path / "target"

        def connector(self):
            return MySink(self.path)

        def rows(self):
            return read_everything(self.path)

        def refused_value(self, number):
            return {"id": number, "text": "x" * 10_000}
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Self

from streams.connectors.sink import RefusedRow, SinkContext, SinkRows, keeps_positions
from streams.errors import SinkFenced, SinkMismatch, SinkUnavailable
from streams.records import TopicPartition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from streams.connectors.sink import SinkConnector, SinkWriter


WAIT_SECONDS = 60.0
"""How long a call may take that waits for another writer, or rows to be received."""

LOOK_SECONDS = 0.01


class SinkTests(ABC):
    """What the tests of every contract are made of.

    Each test has a new target, to which each connector that :meth:`connector` returns in that test leads.
    """

    topic = "orders"
    topic_id = "topic-id-1"
    lock_timeout = 5.0

    @abstractmethod
    def connector(self) -> SinkConnector:
        """Return the connector to the test's target, which is empty at first."""

    @abstractmethod
    def rows(self) -> Iterable[tuple[int, str]]:
        """Read the target's committed rows back: number and text of each, in any order, repeats included."""

    def key(self, number: int) -> Any:
        """Return a record's key."""
        return number

    def value(self, number: int, text: str) -> Any:
        """Return a record's value."""
        return {"id": number, "text": text}

    def crash(self, writer: SinkWriter) -> None:
        """End a writer as a crash of its process does: what is not committed is lost."""
        writer.close()

    # What the tests are made of.

    def partition(self, number: int = 0) -> TopicPartition:
        """One of the topic's partitions."""
        return TopicPartition(self.topic, number)

    def context(
        self, *, application: str = "contract", name: str = "sink", worker: str = "w1"
    ) -> SinkContext:
        """Who opens the sink."""
        return SinkContext(application=application, name=name, worker=worker, lock_timeout=self.lock_timeout)

    def opened(self, **who: str) -> SinkWriter:
        """Check and open the sink, as a worker does."""
        connector, context = self.connector(), self.context(**who)
        connector.check(context)
        return connector.open(context)

    def claimed(self, writer: SinkWriter, *numbers: int) -> list[int]:
        """Claim partitions, 0 if none is named, and return their positions."""
        partitions = [self.partition(number) for number in numbers or (0,)]
        found = writer.claim(dict.fromkeys(partitions, self.topic_id))
        assert set(found) == set(partitions)
        return [found[partition] for partition in partitions]

    def batch(
        self,
        records: Sequence[tuple[int, str | None]],
        start: int = 0,
        *,
        partition: int = 0,
        next_offset: int | None = None,
    ) -> SinkRows:
        """Records of numbers and texts (``None``: a null value), at consecutive offsets from ``start``."""
        count = len(records)
        return SinkRows(
            partition=self.partition(partition),
            start=start,
            next_offset=start + count if next_offset is None else next_offset,
            keys=[self.key(number) for number, _ in records],
            values=[None if text is None else self.value(number, text) for number, text in records],
            timestamps=[1_700_000_000_000 + number for number, _ in records],
            headers=[None] * count,
            offsets=range(start, start + count),
        )

    def write(self, writer: SinkWriter, *batches: SinkRows) -> None:
        """Write rows, none of which is refused, and commit them."""
        assert writer.write(batches) == []
        writer.commit()


class SinkContract(SinkTests):
    """What every sink keeps that says of its positions that they are in its transactions."""

    def finish(self, log: Sequence[tuple[int, str | None]], *, partition: int = 0, size: int = 2) -> None:
        """Be the next owner of a partition: go on from the sink's position to the end of its records."""
        while True:
            writer = self.opened(worker="next")
            try:
                (position,) = self.claimed(writer, partition)
                while position < len(log):
                    batch = self.batch(log[position : position + size], position, partition=partition)
                    self.write(writer, batch)
                    position = batch.next_offset
            except SinkUnavailable:
                continue
            else:
                return
            finally:
                writer.close()

    def expect(self, *expected: tuple[int, str]) -> None:
        """Assert that the target has exactly these rows."""
        assert sorted(self.rows()) == sorted(expected)

    # The tests.

    def test_a_new_partition_begins_at_0(self) -> None:
        writer = self.opened()
        assert self.claimed(writer) == [0]
        assert self.claimed(writer) == [0]
        writer.close()
        self.expect()

    def test_a_commit_has_the_rows_and_the_position(self) -> None:
        writer = self.opened()
        self.claimed(writer)
        self.write(writer, self.batch([(1, "a"), (2, "b")]))
        self.write(writer, self.batch([(3, "c")], 2))
        assert self.claimed(writer) == [3]
        writer.close()
        self.expect((1, "a"), (2, "b"), (3, "c"))
        successor = self.opened(worker="w2")
        assert self.claimed(successor) == [3]
        successor.close()

    def test_what_is_rolled_back_is_not_there_and_may_be_written_again(self) -> None:
        writer = self.opened()
        self.claimed(writer)
        writer.write([self.batch([(1, "a"), (2, "b")])])
        writer.rollback()
        self.expect()
        self.write(writer, self.batch([(1, "a")]))
        assert self.claimed(writer) == [1]
        writer.close()
        self.expect((1, "a"))

    def test_a_crash_after_any_step_neither_loses_nor_repeats_rows(self) -> None:
        expected = []
        for steps in range(8):
            log = [(steps * 10 + number, f"{steps}/{number}") for number in range(6)]
            expected += log
            writer = self.opened()
            step: Callable[[], Any]
            for step in (
                lambda: self.claimed(writer, steps),  # noqa: B023 - called in this round of the loop
                lambda: writer.write([self.batch(log[:2], partition=steps)]),  # noqa: B023 - as above
                lambda: writer.commit(),  # noqa: B023, PLW0108 - as above
                lambda: writer.write([self.batch(log[2:4], 2, partition=steps)]),  # noqa: B023 - as above
                lambda: writer.rollback(),  # noqa: B023, PLW0108 - as above
                lambda: writer.write([self.batch(log[2:5], 2, partition=steps)]),  # noqa: B023 - as above
                lambda: writer.commit(),  # noqa: B023, PLW0108 - as above
            )[:steps]:
                step()
            self.crash(writer)
            self.finish(log, partition=steps)
        self.expect(*expected)

    def test_the_writer_of_a_replaced_owner_is_fenced(self) -> None:
        zombie, owner = self.opened(worker="zombie"), self.opened(worker="owner")
        self.claimed(zombie)
        self.claimed(owner)
        self.write(owner, self.batch([(1, "a"), (2, "b")]))
        with raises(SinkFenced):
            self.write(zombie, self.batch([(1, "a")]))
        zombie.close()
        self.write(owner, self.batch([(3, "c")], 2))
        owner.close()
        self.expect((1, "a"), (2, "b"), (3, "c"))

    def test_an_owner_is_fenced_where_a_zombie_was_faster(self) -> None:
        zombie, owner = self.opened(worker="zombie"), self.opened(worker="owner")
        self.claimed(zombie)
        self.claimed(owner)
        self.write(zombie, self.batch([(1, "a")]))
        with raises(SinkFenced):
            self.write(owner, self.batch([(1, "a"), (2, "b")]))
        owner.close()
        zombie.close()
        self.finish([(1, "a"), (2, "b")])
        self.expect((1, "a"), (2, "b"))

    def test_a_claim_during_the_commit_of_another_owner_sees_it_or_prevents_it(self) -> None:
        log = [(1, "a"), (2, "b"), (3, "c")]
        zombie, owner = self.opened(worker="zombie"), self.opened(worker="owner")
        self.claimed(zombie)
        zombie.write([self.batch(log[:2])])
        claims: list[int] = []

        def claim() -> None:
            claims.extend(self.claimed(owner))

        thread = threading.Thread(target=claim)
        thread.start()
        committed = True
        try:
            zombie.commit()
        except SinkUnavailable:
            committed = False
        thread.join(WAIT_SECONDS)
        assert claims == ([2] if committed else [0])
        zombie.close()
        owner.close()
        self.finish(log)
        self.expect(*log)

    def test_a_topic_that_was_created_again_is_refused(self) -> None:
        writer = self.opened()
        self.claimed(writer)
        self.write(writer, self.batch([(1, "a")]))
        with raises(SinkMismatch) as mismatch:
            writer.claim({self.partition(): "topic-id-2"})
        writer.close()
        message = str(mismatch.error)
        assert self.topic_id in message
        assert "topic-id-2" in message
        successor = self.opened()
        assert self.claimed(successor) == [1]
        successor.close()
        self.expect((1, "a"))

    def test_partitions_that_are_added_begin_at_0(self) -> None:
        writer = self.opened()
        self.claimed(writer, 0, 1)
        self.write(writer, self.batch([(1, "a")]), self.batch([(2, "b")], partition=1))
        writer.close()
        writer = self.opened()
        assert self.claimed(writer, 0, 1, 2, 3) == [1, 1, 0, 0]
        self.write(writer, self.batch([(3, "c")], partition=3))
        assert self.claimed(writer, 0, 1, 2, 3) == [1, 1, 0, 1]
        writer.close()
        self.expect((1, "a"), (2, "b"), (3, "c"))

    def test_offsets_have_gaps(self) -> None:
        writer = self.opened()
        self.claimed(writer)
        self.write(writer, self.batch([(1, "a")], next_offset=1_000))
        self.write(writer, self.batch([(2, "b")], 1_000, next_offset=5_000_000_000))
        assert self.claimed(writer) == [5_000_000_000]
        writer.close()
        self.expect((1, "a"), (2, "b"))

    def test_a_transaction_without_rows_moves_the_position(self) -> None:
        writer = self.opened()
        self.claimed(writer, 0, 1)
        self.write(writer, self.batch([], next_offset=7), self.batch([(1, "a")], partition=1))
        self.write(writer, self.batch([], 7, next_offset=9))
        assert self.claimed(writer, 0, 1) == [9, 1]
        writer.close()
        self.expect((1, "a"))

    def test_partitions_of_one_transaction_are_committed_together(self) -> None:
        writer, other = self.opened(), self.opened(worker="w2")
        self.claimed(writer, 0, 1)
        self.claimed(other, 1)
        self.write(other, self.batch([(2, "b")], partition=1))
        with raises(SinkFenced):
            self.write(writer, self.batch([(1, "a")]), self.batch([(2, "b")], partition=1))
        writer.close()
        assert self.claimed(other, 0, 1) == [0, 1]
        other.close()
        self.expect((2, "b"))

    def test_partitions_move_to_another_worker(self) -> None:
        first, second = self.opened(), self.opened(worker="w2")
        self.claimed(first, 0, 1)
        self.write(first, self.batch([(1, "a")]), self.batch([(2, "b")], partition=1))
        first.release([self.partition(1)])
        assert self.claimed(second, 1) == [1]
        self.write(second, self.batch([(3, "c")], 1, partition=1))
        self.write(first, self.batch([(4, "d")], 1))
        second.release([self.partition(1)])
        assert self.claimed(first, 1) == [2]
        first.close()
        second.close()
        self.expect((1, "a"), (2, "b"), (3, "c"), (4, "d"))

    def test_sinks_and_applications_have_their_own_positions(self) -> None:
        for number, who in enumerate(
            ({}, {"name": "other sink"}, {"application": "other application"}, {"application": "a'b\\c%s"})
        ):
            writer = self.opened(**who)
            assert self.claimed(writer) == [0]
            self.write(writer, self.batch([(number, "a")]))
            assert self.claimed(writer) == [1]
            writer.close()
        self.expect(*((number, "a") for number in range(4)))

    def test_closing_discards_what_is_not_committed(self) -> None:
        writer = self.opened()
        self.claimed(writer)
        writer.write([self.batch([(1, "a")])])
        writer.close()
        writer.close()
        writer = self.opened()
        assert self.claimed(writer) == [0]
        writer.rollback()
        writer.close()
        self.expect()

    def test_a_transaction_of_as_many_rows_as_the_sink_takes(self) -> None:
        count = self.connector().max_rows
        log = [(number, f"text {number}") for number in range(count)]
        writer = self.opened()
        self.claimed(writer)
        self.write(writer, self.batch(log))
        writer.close()
        self.expect(*log)

    def test_text_comes_back_as_it_was(self) -> None:
        texts = (
            "",
            " ",
            "NULL",
            "null",
            "ä€😀",
            "'\"\\",
            "a\tb\nc\rd",
            "{}",
            "\\N",
            "%s",
            "\\x41",
            "-0",
            "1.10",
        )
        log = list(enumerate(texts))
        writer = self.opened()
        self.claimed(writer)
        self.write(writer, self.batch(log))
        writer.close()
        self.expect(*log)


class KeyedSinkContract(SinkContract):
    """Also for sinks that write by key: the target is the fold of the records, however they are cut."""

    def test_later_records_replace_and_delete_rows(self) -> None:
        writer = self.opened()
        self.claimed(writer)
        self.write(writer, self.batch([(1, "a"), (2, "a"), (3, "a")]))
        self.write(writer, self.batch([(1, "b"), (2, None), (4, None)], 3))
        self.write(writer, self.batch([(2, "c")], 6))
        writer.close()
        self.expect((1, "b"), (2, "c"), (3, "a"))

    def test_several_changes_of_a_key_in_one_transaction_are_applied_in_order(self) -> None:
        logs: list[list[str | None]] = [
            ["a", "b"],
            ["a", None],
            [None, "b"],
            ["a", None, "b"],
            ["a", "b", None, None],
            ["a", None, "a", None, "c", "b"],
            [None, None],
        ]
        writer = self.opened()
        self.claimed(writer)
        log = [(number, text) for number, texts in enumerate(logs) for text in texts]
        expected = [(number, texts[-1]) for number, texts in enumerate(logs)]
        self.write(writer, self.batch(log))
        self.expect(*((number, text) for number, text in expected if text is not None))
        position = len(log)
        for record in log:
            self.write(writer, self.batch([record], position))
            position += 1
        writer.close()
        self.expect(*((number, text) for number, text in expected if text is not None))


class RefusingSinkTests(SinkTests):
    """What the tests of refused rows are made of."""

    @abstractmethod
    def refused_value(self, number: int) -> Any:
        """Return a value that the system refuses, with that number."""

    def batch_with_refused(
        self, log: Sequence[tuple[int, str | None]], start: int, *refused: int
    ) -> SinkRows:
        """Records of which some, by their places, have values that are refused."""
        batch = self.batch(log, start)
        values = list(batch.values)
        for row in refused:
            values[row] = self.refused_value(log[row][0])
        return SinkRows(
            partition=batch.partition,
            start=batch.start,
            next_offset=batch.next_offset,
            keys=batch.keys,
            values=values,
            timestamps=batch.timestamps,
            headers=batch.headers,
            offsets=batch.offsets,
        )

    def require_refused(self, refused: list[RefusedRow], *rows: tuple[int, int]) -> None:
        """Assert that these rows, by partition and place, were refused for a reason that is told."""
        assert sorted((item.partition.partition, item.row) for item in refused) == sorted(rows)
        for item in refused:
            assert item.partition.topic == self.topic
            assert str(item.error).strip()


class RefusingSinkContract(SinkContract, RefusingSinkTests):
    """Also for sinks whose system refuses rows: those become dead letters, and the others are written."""

    def test_refused_rows_are_named_and_the_others_written(self) -> None:
        log = [(number, f"text {number}") for number in range(20)]
        bad = (0, 7, 8, 19)
        writer = self.opened()
        self.claimed(writer)
        self.require_refused(
            writer.write([self.batch_with_refused(log, 0, *bad)]), *((0, row) for row in bad)
        )
        writer.commit()
        assert self.claimed(writer) == [20]
        writer.close()
        self.expect(*(record for row, record in enumerate(log) if row not in bad))

    def test_rows_of_several_partitions_are_refused_where_they_are(self) -> None:
        writer = self.opened()
        self.claimed(writer, 0, 1)
        refused = writer.write(
            [
                self.batch([(10, "a"), (11, "b")], partition=1),
                self.batch_with_refused([(1, "a"), (2, "b"), (3, "c")], 0, 1),
            ]
        )
        self.require_refused(refused, (0, 1))
        writer.commit()
        writer.close()
        self.expect((1, "a"), (3, "c"), (10, "a"), (11, "b"))

    def test_refused_rows_alone_move_the_position(self) -> None:
        writer = self.opened()
        self.claimed(writer)
        refused = writer.write([self.batch_with_refused([(1, "a"), (2, "b")], 0, 0, 1)])
        self.require_refused(refused, (0, 0), (0, 1))
        writer.commit()
        self.write(writer, self.batch([(3, "c")], 2))
        assert self.claimed(writer) == [3]
        writer.close()
        self.expect((3, "c"))

    def test_a_transaction_with_refused_rows_can_be_rolled_back(self) -> None:
        writer = self.opened()
        self.claimed(writer)
        writer.write([self.batch_with_refused([(1, "a"), (2, "b")], 0, 0)])
        writer.rollback()
        assert self.claimed(writer) == [0]
        self.write(writer, self.batch([(1, "a"), (2, "b")]))
        writer.close()
        self.expect((1, "a"), (2, "b"))


class KeyedRefusingSinkContract(KeyedSinkContract, RefusingSinkContract):
    """Also for sinks with both: a refused row changes nothing about the key's other rows."""

    def test_a_refused_row_leaves_the_keys_earlier_and_later_rows(self) -> None:
        writer = self.opened()
        self.claimed(writer)
        log = [(1, "a"), (1, "bad"), (2, "a"), (2, "bad"), (2, "c"), (3, "bad"), (3, None), (4, "bad")]
        refused = writer.write([self.batch_with_refused(log, 0, 1, 3, 5, 7)])
        self.require_refused(refused, (0, 1), (0, 3), (0, 5), (0, 7))
        writer.commit()
        writer.close()
        self.expect((1, "a"), (2, "c"))


class DeliveringSinkContract(RefusingSinkTests):
    """What every sink keeps whose ``keeps_positions`` is false: it delivers rows by ``write``, at least once.

    :meth:`rows` returns what the target has received by now, in the order of receiving.
    """

    def expect_once(self, *expected: tuple[int, str]) -> None:
        """Wait for these rows, and assert that each was received once, in this order, and nothing else."""
        self._wait_for(len(expected))
        assert list(self.rows()) == list(expected)

    def expect_each(self, *expected: tuple[int, str]) -> None:
        """Wait until each of these rows was received, and assert that nothing else was."""
        until = time.monotonic() + WAIT_SECONDS
        while not set(self.rows()).issuperset(expected) and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
        assert set(self.rows()) == set(expected)

    def _wait_for(self, count: int) -> None:
        until = time.monotonic() + WAIT_SECONDS
        while len(list(self.rows())) < count and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)

    def test_it_says_that_it_keeps_no_positions(self) -> None:
        assert not keeps_positions(self.connector())
        writer = self.opened()
        assert self.claimed(writer, 0, 1) == [0, 0]
        self.write(writer, self.batch([(1, "a")]))
        assert self.claimed(writer, 0, 1, 2) == [0, 0, 0]
        writer.release([self.partition(1)])
        writer.close()

    def test_rows_are_delivered_once_and_in_order_while_nothing_fails(self) -> None:
        log = [(number, f"text {number}") for number in range(50)]
        writer = self.opened()
        self.claimed(writer)
        for start in range(0, 50, 10):
            self.write(writer, self.batch(log[start : start + 10], start))
        self.expect_once(*log)
        writer.close()
        self.expect_once(*log)

    def test_rows_are_delivered_before_the_commit(self) -> None:
        writer = self.opened()
        self.claimed(writer)
        assert writer.write([self.batch([(1, "a"), (2, "b")])]) == []
        self.expect_once((1, "a"), (2, "b"))
        writer.commit()
        writer.close()

    def test_what_is_rolled_back_was_delivered_and_is_delivered_again(self) -> None:
        writer = self.opened()
        self.claimed(writer)
        assert writer.write([self.batch([(1, "a"), (2, "b")])]) == []
        writer.rollback()
        self.write(writer, self.batch([(1, "a"), (2, "b"), (3, "c")]))
        self.expect_once((1, "a"), (2, "b"), (1, "a"), (2, "b"), (3, "c"))
        writer.close()

    def test_a_writer_that_is_opened_after_another_one_delivers_what_follows(self) -> None:
        expected = []
        for steps in range(1, 6):
            log = [(steps * 10 + number, f"{steps}/{number}") for number in range(6)]
            expected += log
            committed = 0
            writer = self.opened()
            self.claimed(writer, steps)
            if steps > 1:
                writer.write([self.batch(log[:2], partition=steps)])
            if steps > 2:
                writer.commit()
                committed = 2
            if steps > 3:
                writer.write([self.batch(log[2:4], 2, partition=steps)])
            if steps > 4:
                writer.rollback()
            self.crash(writer)
            successor = self.opened(worker="next")
            self.claimed(successor, steps)
            self.write(successor, self.batch(log[committed:], committed, partition=steps))
            successor.close()
        self.expect_each(*expected)

    def test_close_waits_until_what_was_written_is_on_its_way(self) -> None:
        log = [(number, "x" * 1_000) for number in range(self.connector().max_rows)]
        writer = self.opened()
        self.claimed(writer)
        self.write(writer, self.batch(log))
        writer.close()
        writer.close()
        writer.rollback()
        self.expect_once(*log)

    def test_rows_of_several_partitions_and_with_gaps_between_their_offsets(self) -> None:
        writer = self.opened()
        self.claimed(writer, 0, 1)
        self.write(writer, self.batch([], next_offset=7), self.batch([(1, "a")], partition=1))
        self.write(writer, self.batch([(2, "b")], 7, next_offset=5_000_000_000))
        self.write(writer, self.batch([(3, "c"), (4, "d")], 5_000_000_000))
        self.expect_once((1, "a"), (2, "b"), (3, "c"), (4, "d"))
        writer.close()

    def test_text_comes_back_as_it_was(self) -> None:
        log = list(
            enumerate(("", " ", "NULL", "ä€😀", "'\"\\", "a\tb\nc\rd", "{}", "%s", "\x00", "-0", "1.10"))
        )
        writer = self.opened()
        self.claimed(writer)
        self.write(writer, self.batch(log))
        self.expect_once(*log)
        writer.close()

    def test_refused_rows_are_named_and_the_others_delivered(self) -> None:
        log = [(number, f"text {number}") for number in range(20)]
        bad = (0, 7, 8, 19)
        writer = self.opened()
        self.claimed(writer, 0, 1)
        refused = writer.write(
            [
                self.batch_with_refused(log, 0, *bad),
                self.batch([(100, "other")], partition=1),
            ]
        )
        self.require_refused(refused, *((0, row) for row in bad))
        writer.commit()
        self.require_refused(writer.write([self.batch_with_refused([(1, "a")], 20, 0)]), (0, 0))
        writer.commit()
        self.expect_once(*(record for row, record in enumerate(log) if row not in bad), (100, "other"))
        writer.close()


class raises:  # noqa: N801 - as in pytest, which this module does not need
    """Expects an error in a block, and keeps it as ``error``."""

    def __init__(self, kind: type[Exception]) -> None:
        self.kind = kind
        self.error: BaseException | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        assert kind is not None, f"{self.kind.__name__} was to be raised"
        self.error = error
        return issubclass(kind, self.kind)
