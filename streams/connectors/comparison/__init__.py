"""Compare two tables that should have the same rows, while both change.

A database that can take part implements ``table.ComparableTable``.
"""

from streams.connectors.comparison.compare import compare
from streams.connectors.comparison.result import ColumnDifference, Comparison, Difference

__all__ = ["ColumnDifference", "Comparison", "Difference", "compare"]
