"""The pages, in the order of the navigation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from streams.console.pages.alerts import ALERTS
from streams.console.pages.audit import AUDIT
from streams.console.pages.dead_letters import DEAD_LETTERS
from streams.console.pages.jobs import JOBS
from streams.console.pages.ledger import LEDGER
from streams.console.pages.now import NOW
from streams.console.pages.overview import OVERVIEW
from streams.console.pages.partitions import PARTITIONS
from streams.console.pages.replays import REPLAYS
from streams.console.pages.self_check import SELF_CHECK
from streams.console.pages.state import STATE
from streams.console.pages.sync import SYNC
from streams.console.pages.topics import TOPICS
from streams.console.pages.topology import TOPOLOGY
from streams.console.pages.workers import WORKERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.console.page import Page

PAGES: Final[Sequence[Page]] = (
    NOW,
    OVERVIEW,
    TOPOLOGY,
    PARTITIONS,
    WORKERS,
    LEDGER,
    DEAD_LETTERS,
    STATE,
    JOBS,
    SYNC,
    REPLAYS,
    ALERTS,
    TOPICS,
    AUDIT,
    SELF_CHECK,
)
