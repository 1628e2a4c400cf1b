"""The pages, in the order of the navigation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from streams.console.pages.jobs import JOBS
from streams.console.pages.now import NOW
from streams.console.pages.overview import OVERVIEW
from streams.console.pages.replays import REPLAYS
from streams.console.pages.self_check import SELF_CHECK
from streams.console.pages.state import STATE
from streams.console.pages.sync import SYNC

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.console.page import Page

PAGES: Final[Sequence[Page]] = (NOW, OVERVIEW, STATE, JOBS, SYNC, REPLAYS, SELF_CHECK)
