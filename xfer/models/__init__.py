"""Backbones, their parameters and a small CNN baseline."""
