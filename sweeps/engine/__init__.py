"""What runs an experiment."""
