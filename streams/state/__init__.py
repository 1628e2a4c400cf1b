"""The state of tasks: stores of bytes, and typed views of them with the uncommitted changes."""
