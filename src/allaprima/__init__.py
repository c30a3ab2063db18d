"""allaprima: a student paints, an oracle looks, a teacher retouches."""
