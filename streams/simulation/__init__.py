"""Deterministic simulation: an app under faults, compared with a run without any."""

from streams.simulation.ranges import RangeSimulator
from streams.simulation.simulator import Simulator

__all__ = ["RangeSimulator", "Simulator"]
