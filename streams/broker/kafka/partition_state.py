"""The state of a partition that is assigned to a consumer, independent of the client library."""

from __future__ import annotations

from enum import Enum

from streams.broker import END


class Reading(Enum):
    """Whether the offset from which to read the partition is known, and whether the client reads it.

    ::

        (assigned, place unknown) ──> UNPLACED ──stop──> UNPLACED_STOPPED
                                          └────placed────┬─────┘
                                                         v
        (assigned with an offset) ───────────────────> READING <──────placed───────┐
                                                         │ ^                       │
                                                      stop placed                  │
                                                         v │                       │
                                                       STOPPED ──reported──> OUT_OF_RANGE

    It is placed by a seek, or, if the client has stopped reading it, by a new assignment.
    """

    UNPLACED = "unplaced"
    """The committed offset is not known yet. Records that the client reads are discarded."""
    UNPLACED_STOPPED = "unplaced and stopped"
    """The same, and the client has stopped reading it."""
    READING = "reading"
    STOPPED = "stopped"
    """The client found no offset to continue from. The next poll determines one."""
    OUT_OF_RANGE = "out of range"
    """The log does not have the next offset. It was reported to the caller, who has to seek."""

    def may_become(self, other: Reading) -> bool:
        """Whether there is a way from here to there in one step."""
        return other is self or other in _READING_NEXT[self]


_READING_NEXT = {
    Reading.UNPLACED: {Reading.READING, Reading.UNPLACED_STOPPED},
    Reading.UNPLACED_STOPPED: {Reading.READING},
    Reading.READING: {Reading.STOPPED},
    Reading.STOPPED: {Reading.READING, Reading.OUT_OF_RANGE},
    Reading.OUT_OF_RANGE: {Reading.READING},
}


class Delivery(Enum):
    """Whether the client may deliver the partition's records.

    ::

        RUNNING ──idle──> IDLE
          │ ^ └<──resume───┘ │
      pause resume         pause
          v │                │
         PAUSED <────────────┘
    """

    RUNNING = "running"
    IDLE = "idle"
    """Paused by ``keep_alive``, until the next poll or seek."""
    PAUSED = "paused"
    """Paused by the caller, until the caller resumes it."""

    def may_become(self, other: Delivery) -> bool:
        """Whether there is a way from here to there in one step."""
        return other in _DELIVERY_NEXT[self]


_DELIVERY_NEXT = {
    Delivery.RUNNING: {Delivery.IDLE, Delivery.PAUSED},
    Delivery.IDLE: {Delivery.RUNNING, Delivery.PAUSED},
    Delivery.PAUSED: {Delivery.RUNNING},
}


class Position(Enum):
    """Whether the client will deliver all records from ``reached`` on.

    ::

                         ┌────────────moved────────────┐
                         v                             │
        (assigned) ──> MOVED ──────end reached─────> CERTAIN
                        │ ^                            │
               rebalanced moved                   rebalanced
                        v │                            │
                     UNCERTAIN <───────────────────────┘
    """

    MOVED = "moved"
    """The client's position was set. The first end that it reports after that is in doubt."""
    CERTAIN = "certain"
    UNCERTAIN = "uncertain"
    """The client may have dropped fetched records: its position has to be set again."""

    def may_become(self, other: Position) -> bool:
        """Whether there is a way from here to there in one step."""
        return other is self or other in _POSITION_NEXT[self]


_POSITION_NEXT = {
    Position.MOVED: {Position.CERTAIN, Position.UNCERTAIN},
    Position.CERTAIN: {Position.MOVED, Position.UNCERTAIN},
    Position.UNCERTAIN: {Position.MOVED},
}


class PartitionState:
    """The state of a partition, from its assignment until it is released.

    ``reached`` is the position after assignments, polls and seeks: the next offset to deliver, or
    ``BEGINNING`` or ``END``. It is ``None`` exactly as long as the partition is unplaced.
    """

    __slots__ = ("delivery", "position", "reached", "reading", "stopped_at")

    def __init__(self, reached: int | None, delivery: Delivery = Delivery.RUNNING) -> None:
        self.reached = reached
        self.reading = Reading.UNPLACED if reached is None else Reading.READING
        self.delivery = delivery
        self.position = Position.MOVED
        self.stopped_at: int | None = None
        """The offset that the client did not find in the log; ``None`` if it had no offset."""

    @property
    def unplaced(self) -> bool:
        """Whether its start offset is unknown: its records and ends are discarded."""
        return self.reading in (Reading.UNPLACED, Reading.UNPLACED_STOPPED)

    @property
    def stopped(self) -> bool:
        """Whether the client has stopped reading it and accepts no seek: it has to be assigned again."""
        return self.reading in (Reading.UNPLACED_STOPPED, Reading.STOPPED, Reading.OUT_OF_RANGE)

    @property
    def paused(self) -> bool:
        """Whether it is paused in the client, for whatever reason."""
        return self.delivery is not Delivery.RUNNING

    @property
    def waits(self) -> bool:
        """Whether the next poll has to place or resume it."""
        return (
            self.reading is not Reading.READING and self.reading is not Reading.OUT_OF_RANGE
        ) or self.delivery is Delivery.IDLE

    # --- reading

    def placed(self, offset: int) -> None:
        """The partition was assigned again, from this offset."""
        self._read(Reading.READING)
        self.reached, self.stopped_at = offset, None

    def sought(self, offset: int) -> None:
        """The partition is read from this offset after a seek."""
        self.placed(offset)
        self.moved()

    def handed_out(self, next_offset: int) -> None:
        """All records before ``next_offset`` were delivered; without a seek, none may be delivered again."""
        assert self.reached is not None, "records of an unplaced partition are discarded"
        assert next_offset > self.reached, (
            f"{next_offset} was delivered before: the next offset is {self.reached}"  # I8
        )
        self.reached = next_offset

    def ended(self, end: int) -> None:
        """The end of the log was reached, and is not in doubt."""
        assert self.reached is not None, "the end of an unplaced partition is discarded"
        # A logical offset is replaced by the actual one.
        if self.reached < 0:
            self.reached = end

    def stop(self, offset: int | None) -> None:
        """The client has stopped reading it: ``offset`` is not in the log, or it had none."""
        if self.unplaced:
            self._read(Reading.UNPLACED_STOPPED)
            return
        # Once it is reported as out of range, only a seek by the caller ends that.
        if self.reading is not Reading.OUT_OF_RANGE:
            self._read(Reading.STOPPED)
        self.stopped_at = None if offset is None or offset < 0 else offset

    def reported(self) -> None:
        """It was reported to the caller that the log does not have the next offset."""
        self._read(Reading.OUT_OF_RANGE)

    # --- delivery

    def idle(self) -> None:
        """``keep_alive`` pauses it."""
        self._deliver(Delivery.IDLE)

    def pause(self) -> None:
        """The caller pauses it; a second call does nothing."""
        if self.delivery is not Delivery.PAUSED:
            self._deliver(Delivery.PAUSED)

    def resume(self) -> None:
        """It is resumed."""
        self._deliver(Delivery.RUNNING)

    # --- the client's position

    def moved(self) -> None:
        """The client's position was set, or will be once it is known."""
        self._be(Position.MOVED)

    def rebalanced(self) -> None:
        """A rebalance happened while the partition was assigned."""
        self._be(Position.UNCERTAIN)

    def doubts(self, end: int) -> bool:
        """Whether an end only counts once it is reported again, because records before it may be missing.

        Offsets between the last record and the end may be markers and aborted transactions, or records that
        the client has dropped when its position was set. So they are read once more after each such change.
        """
        if self.position is Position.CERTAIN:
            return False
        assert self.position is Position.MOVED, "an uncertain position is sought before any end counts"  # I7
        assert self.reached is not None, "the end of an unplaced partition is discarded"
        # A single offset is usually a marker. A partition that starts at the end cannot miss records.
        return end - max(self.reached, 0) > 1 and self.reached != END

    def end_reached(self) -> None:
        """The end counts, or the offsets before it are being read again.

        With new records the next end may be a different one: it is enough that they were read again.
        """
        self._be(Position.CERTAIN)  # I7

    def _read(self, reading: Reading) -> None:
        assert self.reading.may_become(reading), f"{self.reading.value} cannot become {reading.value}"
        self.reading = reading

    def _deliver(self, delivery: Delivery) -> None:
        assert self.delivery.may_become(delivery), f"{self.delivery.value} cannot become {delivery.value}"
        self.delivery = delivery

    def _be(self, position: Position) -> None:
        assert self.position.may_become(position), f"{self.position.value} cannot become {position.value}"
        self.position = position
