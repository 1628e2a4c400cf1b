"""The pages, in the order of the navigation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from streams.console.pages.audit import AUDIT
from streams.console.pages.dead_letters import DEAD_LETTERS
from streams.console.pages.now import NOW
from streams.console.pages.overview import OVERVIEW
from streams.console.pages.self_check import SELF_CHECK
from streams.console.pages.topics import TOPICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.console.page import Page

PAGES: Final[Sequence[Page]] = (NOW, OVERVIEW, DEAD_LETTERS, TOPICS, AUDIT, SELF_CHECK)
