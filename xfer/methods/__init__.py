"""Everything that a recipe can vary: one table of functions per kind of choice."""
