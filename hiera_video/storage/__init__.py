"""Videos that are not plain files: addresses (s3://, https://, ...) and members of tar shards."""
