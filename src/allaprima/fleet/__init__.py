"""Many machines: how many of which, and what happens on them."""
