"""From a result back to the input records that made it."""
