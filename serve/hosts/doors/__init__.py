"""A server whose doors are processes of their own."""
