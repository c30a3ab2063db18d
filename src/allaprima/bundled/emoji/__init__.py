"""The emoji pair: card, data set, recipes, weights."""
