"""Doors that are processes of their own; imports the rest of `serve.hosts` and `serve.link`."""
