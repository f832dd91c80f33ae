"""From samples to batches on the device: views, worker processes, prefetching."""
