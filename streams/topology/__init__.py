"""A program as data: its sources, processors, stores and sinks."""
