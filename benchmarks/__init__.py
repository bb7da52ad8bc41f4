"""Benchmarks: run by hand; their results are committed with date and machine."""
