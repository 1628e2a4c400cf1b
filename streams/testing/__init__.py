"""Test apps without a broker (``TopologyDriver``), and your own connectors (``streams.testing.sinks``)."""

from streams.testing.driver import TopologyDriver

__all__ = ["TopologyDriver"]
