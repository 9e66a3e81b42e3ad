"""What `bench/compare` runs: the systems side by side, the load, the machine, and the report."""
