"""From a plan to a checked, fully resolved sweep."""
