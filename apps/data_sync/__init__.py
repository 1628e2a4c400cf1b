"""A shop's database, synchronised to a warehouse: Postgres through Kafka to Postgres, SQLite and a topic."""
