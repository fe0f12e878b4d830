"""Weights of one or two bits: made of float ones, packed; imports the root and `layers`."""
