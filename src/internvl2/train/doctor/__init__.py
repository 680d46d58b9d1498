"""What is wrong with data, told before a run learns from it."""
