"""Device memory: allocator settings and microbatching."""
