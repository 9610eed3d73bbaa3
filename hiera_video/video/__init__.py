"""One video file or folder of pictures to frames; knows no data set and no model."""
