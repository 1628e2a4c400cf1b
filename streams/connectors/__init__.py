"""Source and sink connectors: what brings records from another system into the log, and out of it.

The contracts are here; each system has one folder, which alone imports its client library.
"""
