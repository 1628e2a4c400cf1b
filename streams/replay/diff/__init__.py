"""Compares the results of two bounded runs: by topic, key and window, and field by field."""
