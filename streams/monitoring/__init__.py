"""What a worker reports about itself: metrics, lag, partitions that make no progress."""
