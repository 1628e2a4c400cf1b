"""Aggregates, computed from columns of many events at a time.

Arithmetic is exact until a result is computed, so that results depend neither on the order of events, nor on
batches, nor on events that were removed again. Stored values are read back unchanged: see
``streams.aggregates.value_codec``.
"""

from streams.aggregates.combined import Combined, check_aggregate, check_fields
from streams.aggregates.contract import Aggregate, Of, Place
from streams.aggregates.extremes import Maximum, Minimum, Top, maximum, minimum, top
from streams.aggregates.numbers import Count, Mean, Total, Variance, count, mean, total, variance
from streams.aggregates.sketches import Distinct, MostFrequent, Quantile, distinct, most_frequent, quantile
from streams.aggregates.user_defined import Custom, custom
from streams.aggregates.values import Collect, First, Latest, collect, first, latest

__all__ = [
    "Aggregate",
    "Collect",
    "Combined",
    "Count",
    "Custom",
    "Distinct",
    "First",
    "Latest",
    "Maximum",
    "Mean",
    "Minimum",
    "MostFrequent",
    "Of",
    "Place",
    "Quantile",
    "Top",
    "Total",
    "Variance",
    "check_aggregate",
    "check_fields",
    "collect",
    "count",
    "custom",
    "distinct",
    "first",
    "latest",
    "maximum",
    "mean",
    "minimum",
    "most_frequent",
    "quantile",
    "top",
    "total",
    "variance",
]
