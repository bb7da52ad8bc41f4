"""Frozen features: extraction, caching and reuse."""
