"""Weights of one or two bits: how they are made of float ones, which have them, how they lie."""
