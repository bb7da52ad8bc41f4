"""The search space: axes, ranges, constraints, known good recipes."""
