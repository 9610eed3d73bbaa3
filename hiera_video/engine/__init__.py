"""Stage 3: model + batches -> trained weights and scores."""
