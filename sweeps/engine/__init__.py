"""The engine: runs an experiment, from the command line to the report."""
