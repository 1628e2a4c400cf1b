"""Processing records again: from which positions, and resetting a group with the state that belongs to it."""
