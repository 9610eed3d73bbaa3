"""What `hiera_video.video.decode` is made of: the gate every file passes, and one reader a library.

`container` opens a file with PyAV, refuses what must not be opened, and lists its frames; the three
readers turn positions in that list into pixels. Users import from `hiera_video.video.decode`.
"""
