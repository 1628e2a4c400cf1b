"""Which names Kafka takes for topics, so that a name is refused where it is written and not by the broker."""

from __future__ import annotations

import re
from functools import lru_cache

LONGEST = 249
"""Letters in a topic's name: the broker makes a folder of it and appends the partition's number."""

ADVICE = "use letters (a-z, A-Z), digits, '.', '_' and '-'"

# Only these letters, in the ASCII sense: str.isalnum takes any alphabet's.
_LEGAL = re.compile(r"[a-zA-Z0-9._-]+")


@lru_cache(maxsize=1024)
def topic_name_fault(name: str) -> str | None:
    """Why Kafka refuses a topic of this name; ``None`` where it takes it."""
    if not name:
        return "it is empty"
    if name in (".", ".."):
        return "the broker keeps topics in folders, and this is no folder's name"
    if len(name) > LONGEST:
        return f"it has {len(name)} letters, {LONGEST} are the most"
    legal = _LEGAL.match(name)
    if legal is None or legal.end() < len(name):
        return f"it contains {name[legal.end() if legal else 0]!r}"
    return None
