"""What can be varied: one readable table per kind of choice."""
