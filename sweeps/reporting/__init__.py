"""Reporting: turns the records of a sweep into a ranking and a report. Needs neither torch nor Ray."""
