"""Times as people write them in forms."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

from streams.errors import ConfigurationError

_AGE: Final = re.compile(r"([0-9]{1,9})([smhd])")
_UNITS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_moment(text: str, now: int) -> int:
    """Parse a time as ISO 8601, in UTC unless it has an offset, or an age such as ``2h``.

    ``now`` and the result are milliseconds since the epoch. Raises ``ConfigurationError``.
    """
    text = text.strip()
    age = _AGE.fullmatch(text)
    if age is not None:
        return now - int(age[1]) * _UNITS[age[2]]
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        return round(moment.timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise ConfigurationError(
            f"{text!r} is not a time", hint="write 2026-05-01T10:00 (UTC), 2026-05-01T10:00+02:00, or 2h"
        ) from error
