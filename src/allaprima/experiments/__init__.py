"""What the verbs of the command line do, and what they share with benchmarks: run folders, runs, scorers, frontiers."""
