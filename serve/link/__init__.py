"""Doors in processes of their own, and what ties them to the engine's; imports `serve.doors`."""
