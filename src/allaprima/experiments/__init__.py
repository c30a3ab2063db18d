"""What the command line and benchmarks share: run folders, runs, image stores, scorers, frontiers, tuning."""
