"""Measurements of a run: accuracy, robustness, benefits of transfer and cost."""
