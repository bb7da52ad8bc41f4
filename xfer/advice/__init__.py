"""Advice on which strategies to try, from measurements of the images before any training."""
