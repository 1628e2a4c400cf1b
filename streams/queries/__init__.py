"""State for others: queries over HTTP, and the directory of which worker holds what."""
