"""Avro decimals for fastavro, which rounds those that are longer than their precision."""

from __future__ import annotations

import decimal
from functools import lru_cache
from typing import Any

import fastavro.read
import fastavro.write

DECIMAL = "streams-decimal"
"""The logical type of decimals in the schemas for fastavro, with readers and writers of this module."""


def _read_decimal(data: bytes, schema: Any, _: Any) -> decimal.Decimal:
    context, limit = _precision(schema["precision"])
    unscaled = int.from_bytes(data, "big", signed=True)
    # Checked before the conversion to a decimal, which takes quadratic time.
    if not -limit < unscaled < limit:
        raise ValueError(f"a decimal has more digits than its precision, {schema['precision']}")
    return context.scaleb(decimal.Decimal(unscaled), -int(schema.get("scale") or 0))


def _write_decimal(value: Any, schema: Any) -> Any:
    if not isinstance(value, decimal.Decimal):
        return value
    unscaled = _unscaled(value, schema)
    magnitude = unscaled if unscaled >= 0 else ~unscaled
    size = int(schema.get("size", magnitude.bit_length() // 8 + 1))
    return unscaled.to_bytes(size, "big", signed=True)


def _unscaled(value: decimal.Decimal, schema: Any) -> int:
    precision, scale = int(schema["precision"]), int(schema.get("scale") or 0)
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        raise ValueError(f"an Avro decimal must be a finite number, got {value}")  # noqa: TRY004 - the type is right
    shift = exponent + scale
    kept = digits if shift >= 0 else digits[:shift]
    if any(digits[len(kept) :]):
        raise ValueError(f"{value} does not fit a decimal of scale {scale}")
    if not any(kept):
        return 0
    if len(kept) + max(shift, 0) > precision:
        raise ValueError(f"{value} does not fit a decimal of precision {precision} and scale {scale}")
    unscaled: int = int("".join(map(str, kept))) * 10 ** max(shift, 0)
    return -unscaled if sign else unscaled


def fits(value: decimal.Decimal, schema: Any) -> bool:
    """Whether a decimal of the schema represents the value exactly."""
    try:
        _write_decimal(value, schema)
    except (ValueError, OverflowError):
        return False
    return True


@lru_cache
def _precision(precision: int) -> tuple[decimal.Context, int]:
    return decimal.Context(prec=precision), 10**precision


for _kind in ("bytes", "fixed"):
    # Registered with a separate logical type, as the registry is shared with all users of fastavro.
    fastavro.read.LOGICAL_READERS[f"{_kind}-{DECIMAL}"] = _read_decimal
    fastavro.write.LOGICAL_WRITERS[f"{_kind}-{DECIMAL}"] = _write_decimal
