"""Console: progress, reports, logs and the MLflow UI."""
