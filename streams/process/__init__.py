"""Processes of an app: the supervisor, and each worker's slot, signals and open files."""
