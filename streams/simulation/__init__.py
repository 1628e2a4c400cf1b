"""Deterministic simulation: an app under faults, compared with a run without any."""

from streams.simulation.simulator import Simulator

__all__ = ["Simulator"]
