"""A topology: the program's sources, steps, stores and sinks as data."""
