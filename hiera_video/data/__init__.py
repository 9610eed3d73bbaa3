"""Many labelled videos -> batches of clips.

`manifests/` lists the videos, `datasets.py` reads one, `transforms/` augments it, `loader.py` makes
batches in worker processes. Never imports `models` or `engine`.
"""
