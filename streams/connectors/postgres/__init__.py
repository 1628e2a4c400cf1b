"""Postgres: the only folder that imports its client library, psycopg (extra ``postgres``)."""

from streams.connectors.postgres.comparable import PostgresTable

__all__ = ["PostgresTable"]
