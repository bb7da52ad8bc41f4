"""Cloud clusters to run sweeps on: checks before the start, Ray's AWS provider, and MLflow's server on the head."""
