"""Chooses the first trials of a search, from the advisor and from earlier sweeps."""
