"""Which recipes to try, where, and when to stop: Ray Tune schedules, Optuna suggests, MLflow displays."""
