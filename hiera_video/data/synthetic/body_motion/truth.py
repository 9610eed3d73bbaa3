"""What is known of a generated clip: the numbers of every cell, their order and usual spread."""

from __future__ import annotations

FLOW_CHANNELS = 6
"""Displacement until the next frame (x, y), that part of it which is not the camera's (x, y), and
what is not the camera's over `FAR` frames (x, y); all in 1/64 of the view's side."""

FAR = 4
"""Frames of the long displacement, which tells a step forward from a swing."""

DOING = ("rise", "jump", "step", "walk", "turn", "fall", "lean", "wave")
"""What a figure does over the frames of a clip, each around -1 to 1: hips go up (or down), feet
leave the ground, legs swing, it goes somewhere, turns about itself, tips over, bends (or
straightens up), arms swing."""

BODY = ("figure", *DOING)
"""Numbers of a body as a whole: 1 for a figure (0 for other things), and what it does. They come
after the displacements. In a cell they are means over its pixels."""

TRUTH_CHANNELS = FLOW_CHANNELS + len(BODY)

GRID = 16
"""The truth has this many cells along each side."""

LARGEST_SIZE = 416
"""Side of the largest pictures, pixels: `light` has noise for no more."""

FLOW_SCALE = (0.64, 0.52, 0.40, 0.38, 0.69, 0.61)
"""Standard deviations over 600 clips, of displacements after asinh."""

FIGURE_SHARE = 0.15
"""Share of the picture that figures cover, about."""

DOING_SCALE = (0.34, 0.39, 0.41, 0.46, 0.60, 0.20, 0.25, 0.30)
"""Standard deviations over 440 figures, about."""
