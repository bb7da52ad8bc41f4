"""Commands of `python -m xfer`, one module each: `add_arguments` adds its flags, `run` executes it."""
