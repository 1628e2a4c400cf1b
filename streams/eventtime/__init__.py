"""Event time: windows, stream time, and the order in which several inputs are read."""
