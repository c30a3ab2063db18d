"""Model cards: what a card says, where its sources are, and what is known of them without loading a weight."""
