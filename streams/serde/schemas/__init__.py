"""Describe types and Avro schemas, and check whether values written with one can be read with another."""
