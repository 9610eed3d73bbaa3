"""Vectors of videos from a frozen model: computing them, keeping them in a file, using them."""
