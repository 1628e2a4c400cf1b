"""The runtime of a worker: the loop, its tasks, commits, restores and standby replicas."""
