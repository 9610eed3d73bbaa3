"""Generated videos whose labels are known.

`camera_motion.py` is one generator: `camera_path.py`, `scenes.py` and `shapes.py` are its parts.
Every generator shares `seeds.py`, `drawing.py`, `mp4.py` and `generated_set.py`, which writes a set
of files in worker processes.
"""
