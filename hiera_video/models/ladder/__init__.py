"""The steps from MViTv2 to Hiera (paper, table 1), each a registered model."""
