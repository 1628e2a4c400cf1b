"""What types and Avro schemas can hold, and whether values written with one can be read with another."""
