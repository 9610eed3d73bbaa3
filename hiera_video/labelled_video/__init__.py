"""A copy of a video with its labels drawn on it: `hiera-video predict clip.mp4 --video OUT.mp4`.

captions.py    what is said at which time, and its picture
encoder.py     frames and sound in, a file out
write.py       the whole: reads, draws and encodes in a process of its own
"""
