"""Trained weights: where they are published, downloaded, read, and fitted to a model."""
