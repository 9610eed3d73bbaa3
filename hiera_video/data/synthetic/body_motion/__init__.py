"""Generated motion of bodies and things: clips with the truth about what moves where.

`textures.py` and `outlines.py` hold what parts look like, `motions.py` how they move over time,
`figures.py` what bodies are made of, `scene.py` one clip's world and its truth, `raster.py` its
pixels, `light.py` what light and camera do to them, `clips.py` the stream of clips and `actions.py`
the labelled set of files.
"""
