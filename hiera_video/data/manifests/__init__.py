"""The lists of videos of a data set, in every layout that people have them.

`layouts.py` recognises the layout and calls its reader; the readers are `class_folders.py`,
`kinetics.py` and `public_sets.py`; each takes a `Source` and returns a `Manifest`.
"""
