"""Label a stream as it comes: a camera, an address, a growing file or a pipe.

`sources.py` says what may be opened, `label.py` labels it in the calling process. The stream is
read in a guarded child process (`child.py`): `byte_sources.py` gets its bytes, `decoding.py` its
frames and their times, `windows.py` keeps the few frames that the next windows need.
"""
