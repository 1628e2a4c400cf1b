"""A cache for functions of a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

V = TypeVar("V")


class Memo(dict[str, V]):
    """A cache for a function of a text: ``memo[text]`` computes missing results.

    It holds ``limit`` results and is cleared when one more is added, as tracking the order of use would cost
    time on each look-up. Texts over ``longest`` characters are computed each time, which bounds the memory in
    bytes too. Failures are not cached.
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
