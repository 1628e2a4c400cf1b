"""Postgres, as a source of changes and as a sink."""
