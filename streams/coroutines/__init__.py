"""Async functions of the user's: recognised where they cannot work, run where they can."""
