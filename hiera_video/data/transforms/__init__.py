"""Frames to the crops that a model takes: for training, for testing, and mixed over a batch."""
