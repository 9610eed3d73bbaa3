"""Stage 1: video files -> batches of clips. Never imports `models` or `engine`."""
