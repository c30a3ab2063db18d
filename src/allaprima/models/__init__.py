"""Cards, loading, and the student-teacher pair."""
