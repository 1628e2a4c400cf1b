"""The limit of open files of this process: stores need many, and the usual limit is low."""

from __future__ import annotations

import resource

MOST = 1_048_576
"""The highest limit to set: some programs iterate over all possible file descriptors."""


def raise_limit(wanted: int = MOST) -> int:
    """Raise this process's soft limit of open files to ``wanted``, and return the resulting limit.

    It is raised at most to the hard limit, and never lowered.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = min(wanted, MOST) if hard == unlimited else min(wanted, hard, MOST)
    if soft != unlimited and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            # macOS rejects limits above a constant of its own, even below the hard limit.
            return soft
        return wanted
    return MOST if soft == unlimited else soft


def limit() -> int:
    """The current limit of open files."""
    return raise_limit(0)
