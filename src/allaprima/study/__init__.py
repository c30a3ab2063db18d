"""People are asked: pairs of pictures side by side, votes that are kept, and what they say (arXiv 2312.10835, section 4)."""
