"""Replay: what was processed is processed again, in full or in part."""
