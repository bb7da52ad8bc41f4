"""A sweep's folder: immutable JSON objects and the driver's lease."""
