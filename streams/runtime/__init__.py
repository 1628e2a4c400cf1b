"""A worker at work: the loop, its tasks, commits, restores and standby replicas."""
