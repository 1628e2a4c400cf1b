"""How many files this process may have open at once: stores need many, and the usual limit is low."""

from __future__ import annotations

import resource

MOST = 1_048_576
"""More is not asked for: some programs look at each number that a file could have."""


def raise_limit(wanted: int = MOST) -> int:
    """Raise this process's soft limit of open files to ``wanted`` where it is lower; the limit from then on.

    At most the hard limit. A limit that is high enough is left as it is.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    wanted = min(wanted, MOST) if hard == unlimited else min(wanted, hard, MOST)
    if soft != unlimited and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            # macOS refuses more than its own constant, whatever the hard limit says.
            return soft
        return wanted
    return MOST if soft == unlimited else soft


def limit() -> int:
    """How many files this process may have open as things are."""
    return raise_limit(0)
