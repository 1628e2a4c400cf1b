"""Benchmarks of this library and of comparable systems with equal work on one broker: ``make bench``."""
