"""The user's async functions: detected where they are not supported, and run in an event loop elsewhere."""
