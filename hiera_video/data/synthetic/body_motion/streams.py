"""The random numbers of generated body motion, by concern."""

from __future__ import annotations

from hiera_video.data.synthetic.seeds import Streams

stream = Streams(("camera", "bodies", "look", "light", "sensor", "file"))
"""Of a clip."""

bank_stream = Streams(("plate", "outline"))
"""Of the textures and outlines that all clips share."""
