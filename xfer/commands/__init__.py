"""What `python -m xfer` does: one module a command, each with `add`, its flags, and `run`, what it does."""
