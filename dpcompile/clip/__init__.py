"""Kinds of clipping: what the factors are, which parameters share one, and what one example can then contribute."""
