"""A column of a class of its own, as another library's arrays would be, which notes who looks inside it."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any, overload

from streams.records import Column

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from streams.records import Rows


class Numbers(Column[int]):
    """Whole numbers. ``looks`` counts the times that single numbers were asked for from outside."""

    __slots__ = ("looks", "numbers")

    def __init__(self, numbers: Iterable[int], looks: list[str]) -> None:
        self.numbers = array("q", numbers)
        self.looks = looks

    def take(self, rows: Rows | None) -> Numbers:
        numbers = self.numbers
        return Numbers(numbers if rows is None else (numbers[row] for row in rows), self.looks)

    def __len__(self) -> int:
        return len(self.numbers)

    def __contains__(self, value: object) -> bool:
        return value is not None and value in self.numbers

    def __iter__(self) -> Iterator[int]:
        self.looks.append("iterated")
        return iter(self.numbers)

    @overload
    def __getitem__(self, at: int) -> int: ...

    @overload
    def __getitem__(self, at: slice) -> Numbers: ...

    def __getitem__(self, at: int | slice) -> int | Numbers:
        if isinstance(at, slice):
            return Numbers(self.numbers[at], self.looks)
        self.looks.append("indexed")
        return self.numbers[at]


class WholeNumbers:
    """A serde that reads complete columns, of the lengths ``reads``; ``looks`` as for ``Numbers``."""

    name = "WholeNumbers"
    whole_columns = True

    def __init__(self) -> None:
        self.looks: list[str] = []
        self.reads: list[int] = []

    def serialize(self, values: Sequence[int]) -> Iterable[bytes]:
        numbers: Any = values.numbers if isinstance(values, Numbers) else values
        # Bytes stay as they are, so that a test can send what cannot be read.
        return [number if isinstance(number, bytes) else b"%d" % number for number in numbers]

    def deserialize(self, payloads: Sequence[bytes]) -> Iterable[int]:
        self.reads.append(len(payloads))
        return Numbers(map(int, payloads), self.looks)
