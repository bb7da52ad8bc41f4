"""Build backbones, describe their parameters, and a small CNN as a baseline."""
