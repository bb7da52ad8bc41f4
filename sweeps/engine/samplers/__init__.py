"""Samplers: propose the configurations that a sweep tries."""
