"""Several students, each for its own part of the prompts."""
