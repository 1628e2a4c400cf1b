"""What a consumer knows of one partition that is assigned to it. Knows nothing of the client library."""

from __future__ import annotations

from enum import Enum

from streams.broker import END


class Reading(Enum):
    """Whether it is known where the partition is to be read, and whether the client reads there.

    ::

        (assigned, place unknown) ──> UNPLACED ──stop──> UNPLACED_STOPPED
                                          └────placed────┬─────┘
                                                         v
        (assigned with an offset) ───────────────────> READING <──────placed───────┐
                                                         │ ^                       │
                                                      stop placed                  │
                                                         v │                       │
                                                       STOPPED ──reported──> OUT_OF_RANGE

    It is placed by a seek, and where the client has stopped, by being assigned again.
    """

    UNPLACED = "unplaced"
    """The broker could not tell where the group is. What the client reads is discarded."""
    UNPLACED_STOPPED = "unplaced and stopped"
    """Nor does the client read it."""
    READING = "reading"
    STOPPED = "stopped"
    """The client found no place in the log to continue from. Where to continue is to be settled."""
    OUT_OF_RANGE = "out of range"
    """The log does not have what comes next. The caller has been told and has to seek."""

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
    """Whether the client can be relied on to deliver everything from ``reached`` on.

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
    """The client was told where to read. The first end that it reports since then is doubted."""
    CERTAIN = "certain"
    UNCERTAIN = "uncertain"
    """The client may have dropped what it had fetched: it has to be told again where to read."""

    def may_become(self, other: Position) -> bool:
        """Whether there is a way from here to there in one step."""
        return other is self or other in _POSITION_NEXT[self]


_POSITION_NEXT = {
    Position.MOVED: {Position.CERTAIN, Position.UNCERTAIN},
    Position.CERTAIN: {Position.MOVED, Position.UNCERTAIN},
    Position.UNCERTAIN: {Position.MOVED},
}


class PartitionState:
    """One partition, from its assignment until it is released.

    ``reached`` is where assignments, polls and seeks have come to: the next offset to hand out, or
    ``BEGINNING`` or ``END``. It is unknown, ``None``, exactly as long as the partition is unplaced.
    """

    __slots__ = ("delivery", "position", "reached", "reading", "stopped_at")

    def __init__(self, reached: int | None, delivery: Delivery = Delivery.RUNNING) -> None:
        self.reached = reached
        self.reading = Reading.UNPLACED if reached is None else Reading.READING
        self.delivery = delivery
        self.position = Position.MOVED
        self.stopped_at: int | None = None
        """The offset that the client did not find in the log; ``None`` where it had none to look for."""

    @property
    def unplaced(self) -> bool:
        """Whether it is not known where it is to be read: its records and ends are discarded."""
        return self.reading in (Reading.UNPLACED, Reading.UNPLACED_STOPPED)

    @property
    def stopped(self) -> bool:
        """Whether the client has stopped reading it and takes no seek: it has to be assigned again."""
        return self.reading in (Reading.UNPLACED_STOPPED, Reading.STOPPED, Reading.OUT_OF_RANGE)

    @property
    def paused(self) -> bool:
        """Whether the client may not deliver its records, for whatever reason."""
        return self.delivery is not Delivery.RUNNING

    @property
    def waits(self) -> bool:
        """Whether the next poll has something to do for it."""
        return (
            self.reading is not Reading.READING and self.reading is not Reading.OUT_OF_RANGE
        ) or self.delivery is Delivery.IDLE

    # --- where it is read

    def placed(self, offset: int) -> None:
        """The client reads it from here: it was assigned again."""
        self._read(Reading.READING)
        self.reached, self.stopped_at = offset, None

    def sought(self, offset: int) -> None:
        """It is to be read from here."""
        self.placed(offset)
        self.moved()

    def handed_out(self, next_offset: int) -> None:
        """All before ``next_offset`` was handed out: it must never come again by itself, nor be skipped."""
        assert self.reached is not None, "records of a partition that is unplaced are discarded"
        assert next_offset > self.reached, (
            f"{next_offset} was handed out before: {self.reached} comes next"  # I8
        )
        self.reached = next_offset

    def ended(self, end: int) -> None:
        """The end of the log was reached, and is believed."""
        assert self.reached is not None, "the end of a partition that is unplaced is discarded"
        # Begun at a logical offset and told the end of it, it continues from there.
        if self.reached < 0:
            self.reached = end

    def stop(self, offset: int | None) -> None:
        """The client has stopped reading it, as ``offset`` is not in the log or as it knew none."""
        if self.unplaced:
            self._read(Reading.UNPLACED_STOPPED)
            return
        # What was reported stays so: only the caller's seek ends it.
        if self.reading is not Reading.OUT_OF_RANGE:
            self._read(Reading.STOPPED)
        self.stopped_at = None if offset is None or offset < 0 else offset

    def reported(self) -> None:
        """The caller is told that the log does not have what comes next."""
        self._read(Reading.OUT_OF_RANGE)

    # --- whether it is delivered

    def idle(self) -> None:
        """``keep_alive`` pauses it."""
        self._deliver(Delivery.IDLE)

    def pause(self) -> None:
        """The caller pauses it; twice is fine."""
        if self.delivery is not Delivery.PAUSED:
            self._deliver(Delivery.PAUSED)

    def resume(self) -> None:
        """What paused it is over."""
        self._deliver(Delivery.RUNNING)

    # --- whether the client is where it should be

    def moved(self) -> None:
        """The client was told where to read, or will be once that is known."""
        self._be(Position.MOVED)

    def rebalanced(self) -> None:
        """It was held through a rebalance."""
        self._be(Position.UNCERTAIN)

    def doubts(self, end: int) -> bool:
        """Whether an end is only believed once it is reported again: records before it may be missing.

        What lies between the last record and the end, markers and aborted transactions, looks just like
        records that the client has dropped as it was moved. So it is read again once after each move.
        """
        if self.position is Position.CERTAIN:
            return False
        assert self.position is Position.MOVED, "an uncertain position is sought before any end counts"  # I7
        assert self.reached is not None, "the end of a partition that is unplaced is discarded"
        # One marker is the rule. Who begins at the end has nothing to miss.
        return end - max(self.reached, 0) > 1 and self.reached != END

    def end_reached(self) -> None:
        """The end was believed, or what lies before it is being read again.

        With traffic the next end may be another one: that it was read up to again is enough.
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
