"""The search space: defaults, overrides, constraints, known good recipes."""
