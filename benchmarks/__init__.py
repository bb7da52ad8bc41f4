"""Measurements that are not tests: run by hand, their results committed with date and machine."""
