"""Runs as jobs of a cluster: what is submitted, and what its tasks do."""
