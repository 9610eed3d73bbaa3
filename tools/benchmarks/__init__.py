"""What `tools/benchmark.py` runs: a file per subcommand, over `measure`, `machine`, `tables`."""
