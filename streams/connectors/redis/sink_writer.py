"""The open sink of one worker: a transaction that the server queues, and executes at the commit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from streams.connectors.redis.connection import DISCARD, EXEC, MULTI
from streams.connectors.redis.server_errors import CommandRefused, refused, sink_error
from streams.connectors.redis.sink_targets import WrongType
from streams.connectors.writer_state import WriterState
from streams.errors import ConnectorError, SinkOutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from streams.connectors.redis.connection import Connection
    from streams.connectors.redis.sink_positions import SinkPositions
    from streams.connectors.redis.sink_targets import SinkTarget
    from streams.connectors.sink import RefusedRow, SinkRows
    from streams.records import TopicPartition


class RedisWriter:
    """A ``SinkWriter`` on one connection, with which everything ends that is not committed."""

    def __init__(self, connection: Connection, positions: SinkPositions, target: SinkTarget) -> None:
        self._connection = connection
        self._positions = positions
        self._target = target
        self._state = WriterState.CLAIMED
        self._rows: Sequence[SinkRows] = ()

    def claim(self, partitions: Mapping[TopicPartition, str]) -> dict[TopicPartition, int]:
        assert self._state is WriterState.CLAIMED
        if not partitions:
            return {}
        try:
            return self._positions.claim(self._connection, partitions)
        except (RedisError, CommandRefused) as error:
            self.close()
            raise sink_error(error, "claiming positions") from error

    def release(self, partitions: Collection[TopicPartition]) -> None:
        """Nothing is kept for a partition: the positions are in the server."""

    def write(self, rows: Sequence[SinkRows]) -> list[RefusedRow]:
        following = self._state.to(WriterState.WRITTEN)
        try:
            found = self._connection.calls(*self._positions.watching(rows))
            self._positions.compare(rows, found[1:])
            changes = self._target.changes(self._connection, rows)
            commands = [*changes.commands, *self._positions.moving(rows)]
            self._connection.calls(MULTI, *commands)
        except WrongType as error:
            self.close()
            raise ConnectorError(
                f"{self._connection.address}: {error}", hint="delete the key, or name another one"
            ) from error
        except (RedisError, CommandRefused) as error:
            self.close()
            raise sink_error(error, f"writing to {self._target.name!r}") from error
        except BaseException:
            self.close()
            raise
        self._state = following
        self._rows = rows
        order = {part.partition: number for number, part in enumerate(rows)}
        return sorted(changes.refused, key=lambda item: (order[item.partition], item.row))

    def commit(self) -> None:
        following = self._state.to(WriterState.CLAIMED)
        try:
            self._connection.send([EXEC])
            answers = self._connection.receive()
        except CommandRefused as error:
            self.close()
            raise sink_error(error, "the commit") from error
        except RedisError as error:
            self.close()
            raise SinkOutcomeUnknown(
                f"the connection to {self._connection.address} ended in a commit, "
                f"which may have happened: {error}"
            ) from error
        if answers is None:
            self.close()
            raise self._positions.lost(self._rows)
        failed = [answer for answer in answers if isinstance(answer, RedisError)]
        if failed:
            self.close()
            raise self._incomplete(refused(failed[0]), len(failed))
        self._state = following

    def _incomplete(self, first: CommandRefused, count: int) -> ConnectorError:
        places = ", ".join(
            f"offsets {part.start} to {part.next_offset} of {part.partition}" for part in self._rows
        )
        return ConnectorError(
            f"{self._connection.address}: {count} of the commands for {places} had no effect, as Redis has "
            f"no rollback: {first}. What they write to was replaced by another program in between",
            hint="what is missing is in the topic: correct the key, and write these records again, or set "
            + " and ".join(f"next_offset in '{self._positions.key(part.partition)}'" for part in self._rows)
            + " back, which repeats the others",
        )

    def rollback(self) -> None:
        if self._state is WriterState.WRITTEN:
            self._state = self._state.to(WriterState.CLAIMED)
            try:
                # It also ends the watch.
                self._connection.calls(DISCARD)
            except (RedisError, CommandRefused):
                self.close()

    def close(self) -> None:
        if self._state is not WriterState.CLOSED:
            self._state = self._state.to(WriterState.CLOSED)
            self._connection.close()
