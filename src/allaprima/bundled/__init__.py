"""Models that come with the package, and the programs that made them."""
