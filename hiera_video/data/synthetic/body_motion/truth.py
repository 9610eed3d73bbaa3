"""What is known of a generated clip: the numbers of every cell, their order and their usual spread."""

from __future__ import annotations

FLOW_CHANNELS = 6
"""Displacement until the next frame (x, y), that part of it which is not the camera's (x, y), and
what is not the camera's over `FAR` frames (x, y); all in 1/64 of the view's side."""

FAR = 4
"""Frames of the long displacement, which tells a step forward from a swing."""

DOING = ("rise", "jump", "step", "walk", "turn", "fall", "lean", "wave")
"""What a figure does over the frames of a clip, each around -1 to 1: hips go up (or down), feet
leave the ground, legs swing, it goes somewhere, turns about itself, tips over, bends (or straightens
up), arms swing. They come after the displacements."""

TRUTH_CHANNELS = FLOW_CHANNELS + len(DOING)

GRID = 16
"""The truth has this many cells along each side."""

TRUTH_SCALE = (0.64, 0.52, 0.40, 0.38, 0.69, 0.61, 0.1, 0.1, 0.25, 0.12, 0.15, 0.08, 0.1, 0.1)
"""Standard deviations over 600 clips, of displacements after asinh; at least 0.08, so that what is
rare does not outweigh the rest."""
