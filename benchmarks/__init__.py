"""How fast this runtime is, beside others that do the same work on the same broker: ``make bench``."""
