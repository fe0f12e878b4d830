"""Who may ask, and how often; imports `serve`'s config and models."""
