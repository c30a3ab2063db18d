"""Reference-free scorers, one file each."""
