"""What came of a run: accuracy and cost."""
