"""What a search starts with: advice and earlier sweeps."""
