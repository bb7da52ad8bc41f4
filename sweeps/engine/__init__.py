"""The engine: runs an experiment."""
