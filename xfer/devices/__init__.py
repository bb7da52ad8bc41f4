"""Devices of a machine: selection, host memory and microbatching."""
