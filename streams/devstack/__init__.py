"""Real servers on this machine for development and tests."""
