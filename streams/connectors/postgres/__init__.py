"""Postgres: the only folder that imports its client library, psycopg (extra ``postgres``)."""
