"""Results of a function of a text, remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

V = TypeVar("V")


class Memo(dict[str, V]):
    """Results of a function of a text, remembered: ``memo[text]`` computes at most once while remembered.

    Holds ``limit`` results and forgets all when one more comes: an order of use would cost on each look-up.
    Texts over ``longest`` characters are computed each time, which bounds the memory in bytes as well.
    Failures are not remembered.
    """

    def __init__(self, function: Callable[[str], V], *, limit: int = 16_384, longest: int = 1_000) -> None:
        super().__init__()
        self.function = function
        self.limit = limit
        self.longest = longest

    def __missing__(self, text: str) -> V:
        result = self.function(text)
        if len(text) <= self.longest:
            if len(self) >= self.limit:
                self.clear()
            self[text] = result
        return result
