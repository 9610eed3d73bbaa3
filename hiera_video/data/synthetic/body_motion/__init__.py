"""Generated motion of bodies and things: clips with the truth about what moves where.

`textures.py` holds what parts look like, `motions.py` how quantities change over time,
`figures.py` what bodies are made of and do, `scene.py` one clip's world, `truth.py` what is known
of it, `raster.py` its pixels, `light.py` what light and camera do to them (`camera.py`, by pixel),
`clips.py` one clip, `reader.py` the stream of clips as a data set, and `actions.py` the labelled
set of files. `compiled.py` says how `raster.py` and `camera.py` are compiled.
"""
