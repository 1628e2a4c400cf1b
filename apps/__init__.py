"""Applications on ``streams``: each package holds one topology and what is particular to it."""
