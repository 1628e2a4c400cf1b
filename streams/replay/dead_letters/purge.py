"""Dead letters are discarded: marked first, then deleted where all before them are discarded too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streams.broker.reading import find_partitions, read_to_end
from streams.records import TopicPartition
from streams.replay.dead_letters.ledger import LetterState
from streams.runtime.letter import letters as letters_of
from streams.runtime.retry_log import Purge

if TYPE_CHECKING:
    from streams.replay.dead_letters.rows import DeadLetters, Selection


@dataclass(frozen=True, slots=True)
class Purged:
    """What a purge has done, or would do."""

    letters: int
    """The dead letters that were discarded."""
    waiting: int
    """Those that were selected and are being retried, which are not discarded."""
    deleted: int = 0
    """The offsets at the beginnings of partitions that were deleted, with discarded dead letters only."""


def purge_letters(letters: DeadLetters, selection: Selection, *, at: int, dry_run: bool = False) -> Purged:
    """Discard the selected dead letters, those that wait for a retry excepted.

    They are marked, and no longer listed or retried. A topic can only delete records from its beginning: so
    those are deleted before which only discarded ones are left; others expire with the topic's retention.
    Records of other apps in the topic are kept. It may be repeated after an interruption. ``at`` is in
    milliseconds since the epoch. Raises ``BrokerError`` and ``TopicError``.
    """
    chosen = [row for row in letters.rows(selection) if row.state is not LetterState.PURGED]
    waiting = sum(row.state is LetterState.WAITING for row in chosen)
    purged = [row for row in chosen if row.state is not LetterState.WAITING]
    if dry_run:
        return Purged(len(purged), waiting)
    letters.ledger.write(
        [
            (row.letter.id, Purge(number=max(row.history.handled, row.history.request), at=at))
            for row in purged
        ],
        at,
    )
    return Purged(len(purged), waiting, _delete(letters))


def _delete(letters: DeadLetters) -> int:
    """Delete the beginnings of partitions that have only discarded dead letters. Returns how many offsets."""
    letters.ledger.read()
    admin = letters.broker.admin()
    try:
        places = find_partitions(letters.broker, [letters.topic])
        topic_id = admin.topic_ids([letters.topic])[letters.topic]
        begins = admin.beginning_offsets(places)
        # Up to the end, unless a record is found that is kept.
        bounds = dict(begins)
        kept: set[TopicPartition] = set()
        for fetched in read_to_end(letters.broker, [letters.topic]):
            place = TopicPartition(fetched.topic, fetched.partition)
            if place in kept:
                continue
            discarded = {
                letter.id.offset
                for letter in letters_of(fetched, topic_id)
                if letter.application == letters.app.name
                and letters.ledger.history(letter.id).state is LetterState.PURGED
            }
            for offset in fetched.offsets():
                if offset not in discarded:
                    kept.add(place)
                    break
                bounds[place] = offset + 1
        moved = {place: bound for place, bound in bounds.items() if bound > begins[place]}
        if moved:
            admin.delete_records(moved)
        return sum(bound - begins[place] for place, bound in moved.items())
    finally:
        admin.close()
