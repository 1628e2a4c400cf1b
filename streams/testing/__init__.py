"""Test apps without a broker, and your own connectors (``streams.testing.sinks``).

``TopologyDriver`` runs an app on records that a test sends one by one, ``replay`` over a range of them, and
``shadow`` compares two versions of it.
"""

from streams.testing.driver import TopologyDriver
from streams.testing.replays import ReplayResults, replay, shadow

__all__ = ["ReplayResults", "TopologyDriver", "replay", "shadow"]
