"""Engine processes: whether they live, whose they are, what they leave behind."""
