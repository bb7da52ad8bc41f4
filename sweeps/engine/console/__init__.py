"""What a user sees: progress, MLflow UI, reports, logs."""
