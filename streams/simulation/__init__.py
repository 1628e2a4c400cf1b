"""Deterministic simulation: an app under faults, compared with a run without any."""
