"""Apply changes to the table, such that the result is that of one change after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from streams.connectors.postgres.changes import Action
from streams.connectors.postgres.encoding import UnwritableValues
from streams.connectors.postgres.server_errors import is_of_the_data, row_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streams.connectors.postgres.changes import Changes
    from streams.connectors.postgres.pipeline import Pipeline
    from streams.connectors.postgres.statements import Statements

PIECE_ROWS = 1_000
"""How many rows one statement sends at most: the server writes them while the next ones become text."""

PIECE_BYTES = 16 * 1024 * 1024
"""About how much one statement sends at most."""

SMALL_SHARE = 0.1
"""Superseded rows up to this share of the others are written too, and overwritten."""

_SAVE = b"savepoint streams_rows"
_UNDO = b"rollback to savepoint streams_rows"
_KEEP = b"release savepoint streams_rows"
_CHECK = b"set constraints all immediate"


class Application:
    """Applies the changes of one transaction.

    There are three ways, and a refusal leads from the first two to the last, in a new transaction (savepoints
    would be two round trips more in every one):

    * only the last state of each key, sorted, where nothing else can be visible: see ``Table.is_plain``. The
      states in between are written before it if they are few, else tried in a temporary table, so that a bad
      one is still refused;
    * runs of changes with different keys, in order;
    * the same, but after each refusal in halves, down to the rows that are refused.
    """

    def __init__(self, pipeline: Pipeline, statements: Statements, changes: Changes) -> None:
        self._pipeline = pipeline
        self._statements = statements
        self._changes = changes
        self._deferred = statements.table.deferred

    def at_once(self) -> bool:
        """Apply the changes, after what was sent before; ``False`` if that did not succeed.

        Then the server has refused some, or they have values that cannot be sent, which are refused now: the
        transaction is to be rolled back. Raises the errors of statements that were sent before.
        """
        before = self._pipeline.sent
        rows = self._changes.live()
        fold = fold_of(self._changes, self._statements, rows)
        try:
            if fold is None:
                self._in_order(rows)
            else:
                self._folded(fold)
            if self._deferred:
                self._pipeline.send(_CHECK)
            self._pipeline.finish()
        except UnwritableValues:
            self._pipeline.discard()
            self._changes.refuse_unwritable()
            return False
        except psycopg.Error as error:
            if not is_of_the_data(error) or self._pipeline.failed < before:
                raise
            return False
        return True

    def _folded(self, fold: Fold) -> None:
        if not fold.stages:
            # They are few: a temporary table would cost more than to write them.
            self._in_order(sorted(fold.superseded))
        else:
            self._pipeline.send(self._statements.create_stage)
            for rows in self._by_shape(fold.superseded):
                self._send(rows, self._statements.stage(self._columns_of(rows)), self._changes.literals)
        if fold.deletes:
            self._send(fold.deletes, self._statements.delete, self._changes.key_literals)
        for rows in self._by_shape(fold.upserts):
            self._put(rows)

    def _in_order(self, rows: Sequence[int]) -> None:
        for run in self._runs(rows):
            action = self._changes.actions[run[0]]
            if action is Action.UPSERT:
                self._put(run)
            elif action is Action.DELETE:
                self._send(run, self._statements.delete, self._changes.key_literals)
            else:
                self._pipeline.send(self._statements.truncate)

    def exactly(self) -> None:
        """Apply all changes but those that are refused where they stand, which ``Changes.refused`` gets.

        All values can be sent.
        """
        self._pipeline.finish()
        rows = self._changes.live()
        if self._deferred:
            # What is refused at once may be right at the end of the transaction, which is tried first.
            refused = dict(self._changes.refused)
            self._pipeline.send(b"savepoint streams_all")
            try:
                self._in_halves(rows, check=False)
                self._pipeline.send(_CHECK)
                self._pipeline.finish()
            except psycopg.Error as error:
                if not is_of_the_data(error):
                    raise
                self._pipeline.send(b"rollback to savepoint streams_all")
                self._changes.refused = refused
            else:
                return
        self._in_halves(rows, check=self._deferred)

    def _in_halves(self, rows: list[int], *, check: bool) -> None:
        waiting = [rows]
        while waiting:
            part = waiting.pop()
            self._pipeline.send(_SAVE)
            try:
                self._in_order(part)
                if check:
                    self._pipeline.send(_CHECK)
                self._pipeline.send(_KEEP)
                self._pipeline.finish()
            except psycopg.Error as error:
                if not is_of_the_data(error):
                    raise
                self._pipeline.send(_UNDO)
                self._pipeline.send(_KEEP)
                if len(part) == 1:
                    self._changes.refused[part[0]] = row_error(error)
                else:
                    middle = len(part) // 2
                    waiting += part[middle:], part[:middle]
        self._pipeline.finish()

    def _runs(self, rows: Sequence[int]) -> Iterator[list[int]]:
        """Consecutive changes that one statement can apply: of one kind and of different keys."""
        changes = self._changes
        run: list[int] = []
        seen: set[Any] = set()
        kind: tuple[Action, int] | None = None
        for row in rows:
            action, shape = changes.actions[row], changes.shape_of[row]
            own = (action, shape if action is Action.UPSERT else 0)
            key = changes.keys[row] if changes.keys else row
            if run and (own != kind or key in seen or self._is_alone(*own)):
                yield run
                run, seen = [], set()
            run.append(row)
            seen.add(key)
            kind = own
        if run:
            yield run

    def _is_alone(self, action: Action, shape: int) -> bool:
        """Whether each change needs its own statement.

        An update of two rows with one key takes any of them, and says nothing. Where rows are proposed for
        insertion, the server refuses the statement.
        """
        if action is not Action.UPSERT:
            return action is Action.TRUNCATE
        columns = self._changes.shapes[shape].columns
        return bool(self._statements.key) and not (
            self._changes.certain or self._statements.inserts_first(columns)
        )

    def _by_shape(self, rows: Sequence[int]) -> Iterator[list[int]]:
        if rows and len(self._changes.shapes) == 1:
            yield list(rows)
            return
        found: dict[int, list[int]] = {}
        for row in rows:
            found.setdefault(self._changes.shape_of[row], []).append(row)
        yield from found.values()

    def _columns_of(self, rows: Sequence[int]) -> tuple[str, ...]:
        return self._changes.shapes[self._changes.shape_of[rows[0]]].columns

    def _put(self, rows: list[int]) -> None:
        self._send(rows, self._statements.put(self._columns_of(rows)), self._changes.literals)

    def _send(
        self,
        rows: Sequence[int],
        statement: bytes,
        literals_of: Callable[[Sequence[int]], list[bytes]],
        step: int = PIECE_ROWS,
    ) -> None:
        for start in range(0, len(rows), step):
            piece = rows[start : start + step]
            literals = literals_of(piece)
            size = sum(map(len, literals))
            if size <= PIECE_BYTES or len(piece) == 1:
                self._pipeline.send(statement, literals)
            else:
                self._send(piece, statement, literals_of, max(1, len(piece) * PIECE_BYTES // size))


@dataclass(frozen=True, slots=True)
class Fold:
    """What changes of a plain table come to: deletions, then the last state of each key that is left."""

    deletes: list[int]
    upserts: list[int]
    superseded: list[int]
    """Upserts that a later change of their key makes invisible."""

    @property
    def stages(self) -> bool:
        """Whether the superseded rows are tried in a temporary table, and not written."""
        return len(self.superseded) > SMALL_SHARE * (len(self.deletes) + len(self.upserts))


def fold_of(changes: Changes, statements: Statements, rows: list[int]) -> Fold | None:
    """Reduce changes to one for each key, ``None`` where this could be noticed."""
    table = statements.table
    if not statements.key or not changes.certain or not table.is_plain(statements.key):
        return None
    actions, keys = changes.actions, changes.keys
    if Action.TRUNCATE in actions:
        return None
    own = keys if len(rows) == len(keys) else [keys[row] for row in rows]
    last = dict(zip(own, rows, strict=True))
    repeated: set[Any] = set()
    alone = rows
    if len(last) < len(rows):
        repeated = {key for key, row in zip(own, rows, strict=True) if last[key] != row}
        alone = [row for key, row in zip(own, rows, strict=True) if key not in repeated]
    deleting = Action.DELETE in actions
    fold = Fold(
        [row for row in alone if actions[row] is Action.DELETE] if deleting else [],
        [row for row in alone if actions[row] is Action.UPSERT] if deleting else list(alone),
        [],
    )
    chains: dict[Any, list[int]] = {key: [] for key in repeated}
    if repeated:
        for key, row in zip(own, rows, strict=True):
            if key in repeated:
                chains[key].append(row)
    for chain in chains.values():
        if not _add_chain(fold, chain, changes, statements):
            return None
    if fold.stages and not table.can_stage:
        return None
    return Fold(_sorted(fold.deletes, keys), _sorted(fold.upserts, keys), fold.superseded)


def _add_chain(fold: Fold, chain: list[int], changes: Changes, statements: Statements) -> bool:
    """Add the changes of one key; ``False`` if its last row has not all that the earlier ones have."""
    actions = changes.actions
    last = chain[-1]
    covered = set(changes.shapes[changes.shape_of[last]].columns) if actions[last] is Action.UPSERT else None
    for row in reversed(chain):
        if actions[row] is Action.DELETE:
            if covered is not None or row == last:
                covered = None
                fold.deletes.append(row)
            continue
        columns = changes.shapes[changes.shape_of[row]].columns
        if covered is not None and not covered.issuperset(columns):
            return False
        if row == last:
            fold.upserts.append(row)
        elif statements.is_complete(columns):
            fold.superseded.append(row)
        else:
            return False
    return True


def _sorted(rows: list[int], keys: Sequence[Any]) -> list[int]:
    """Rows by key: two transactions that lock the same rows in one order cannot wait for each other."""
    return sorted(rows, key=keys.__getitem__)
