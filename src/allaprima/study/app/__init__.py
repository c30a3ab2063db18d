"""The study over HTTP: one page, one pair at a time. The only place of this room that knows FastAPI."""
