"""Connections of the HTTP door, and what bounds them; imports `serve.doors` and what is below."""
