"""The fluent API, which builds a topology."""
