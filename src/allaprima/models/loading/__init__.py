"""Student and teacher from cards, folders and pipelines, and back."""
