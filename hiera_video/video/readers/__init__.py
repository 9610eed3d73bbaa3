"""One reader per decoding library: an open file, its index and wanted frames in, pixels out."""
