"""Generated videos whose labels are known."""
