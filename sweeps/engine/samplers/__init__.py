"""Samplers that propose configurations."""
