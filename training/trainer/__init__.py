"""The training loop and its state; imports config, data and strategies."""
