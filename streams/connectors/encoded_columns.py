"""Columns of keys and values as bytes, without the rows that cannot be serialized."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streams.serde import nullable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streams.serde import Serde


def encoded(serde: Serde[Any], column: Sequence[Any]) -> tuple[list[bytes | None], dict[int, Exception]]:
    """The column as bytes, nulls as ``None``; and the errors of rows that ``serde`` refuses, ``None`` too."""
    payloads: list[bytes | None] = []
    errors: dict[int, Exception] = {}
    # A serde of complete columns does not say at which row it fails: then each row is alone.
    alone = False
    while (start := len(payloads)) < len(column):
        rest = column[start : start + 1] if alone else column[start:]
        try:
            # What was encoded before a row that fails is kept.
            payloads.extend(nullable(serde.serialize)(rest))
        except Exception as error:  # noqa: BLE001 - the error is the row's, which is refused
            if getattr(serde, "whole_columns", False) and not alone:
                del payloads[start:]
                alone = True
                continue
            errors[len(payloads)] = error
            payloads.append(None)
    return payloads, errors
