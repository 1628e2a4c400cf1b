"""Queries of state, also over HTTP, and the directory of which worker holds which partitions."""
