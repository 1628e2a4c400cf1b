"""Run real servers on this machine for development and tests."""
