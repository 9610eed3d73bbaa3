"""What `hiera-video benchmark` runs: a file per subcommand, over `measure`, `machine`, `tables`."""
