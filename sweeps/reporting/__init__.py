"""What a sweep found out: records in, a ranked and honest report out, on any machine that has no torch."""
