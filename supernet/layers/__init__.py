"""Blocks that families are built of; imports `supernet`'s root."""
