"""The workshop: how students are made."""
