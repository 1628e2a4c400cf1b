"""Processes of an app: the supervisor of several, their slots, signals and open files."""
