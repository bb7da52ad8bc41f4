"""Many linear probes trained at once with batched matrix products."""
