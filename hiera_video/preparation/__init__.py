"""Looking after data sets: lists and copies for training, and the audit of what is there."""
