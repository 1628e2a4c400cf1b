"""The bits of a floating-point number as text.

Databases write the same number with other digits: Postgres sometimes with one more than needed.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from streams.connectors.comparison.table import Kind

FORMS: dict[Kind, Literal["d", "f"]] = {"double_bits": "d", "single_bits": "f"}


def bits(number: float, form: Literal["d", "f"], *, exact: bool) -> str:
    """The bits in hexadecimal; those of 0 for -0, unless ``exact``."""
    if math.isnan(number):
        return "NaN"
    if number == 0 and not exact:
        number = 0.0
    try:
        return struct.pack(f">{form}", number).hex()
    except OverflowError:
        return struct.pack(f">{form}", math.copysign(math.inf, number)).hex()


def readable(text: str, form: Literal["d", "f"]) -> str:
    """The number of bits, for people; other text is what it is."""
    try:
        (number,) = struct.unpack(f">{form}", bytes.fromhex(text))
    except (ValueError, struct.error):
        return text
    # Single precision has at most nine digits.
    return repr(number) if form == "d" else f"{number:.9g}"
