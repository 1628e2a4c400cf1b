"""Validates topic names by Kafka's rules, so that errors point to the program and not to the broker."""

from __future__ import annotations

import re
from functools import lru_cache

LONGEST = 249
"""Most characters of a topic's name: the broker appends the partition's number for a folder name."""

ADVICE = "use letters (a-z, A-Z), digits, '.', '_' and '-'"

# ASCII only: str.isalnum accepts letters of any alphabet.
_LEGAL = re.compile(r"[a-zA-Z0-9._-]+")


@lru_cache(maxsize=1024)
def topic_name_fault(name: str) -> str | None:
    """The reason why Kafka refuses a topic name; ``None`` if it is valid."""
    if not name:
        return "it is empty"
    if name in (".", ".."):
        return "the broker stores topics in folders, and this is not a valid folder name"
    if len(name) > LONGEST:
        return f"it has {len(name)} characters, at most {LONGEST} are allowed"
    legal = _LEGAL.match(name)
    if legal is None or legal.end() < len(name):
        return f"it contains {name[legal.end() if legal else 0]!r}"
    return None
