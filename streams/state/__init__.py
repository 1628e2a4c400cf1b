"""State of tasks: bytes in stores, typed views with the changes not committed yet in front of them."""
