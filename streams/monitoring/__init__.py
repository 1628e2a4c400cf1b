"""Monitoring of a worker: metrics, lag, stalled partitions."""
