"""The pages, in the order of the navigation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from streams.console.pages.alerts import ALERTS
from streams.console.pages.now import NOW
from streams.console.pages.overview import OVERVIEW
from streams.console.pages.partitions import PARTITIONS
from streams.console.pages.self_check import SELF_CHECK
from streams.console.pages.topology import TOPOLOGY
from streams.console.pages.workers import WORKERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.console.page import Page

PAGES: Final[Sequence[Page]] = (NOW, OVERVIEW, TOPOLOGY, PARTITIONS, WORKERS, ALERTS, SELF_CHECK)
