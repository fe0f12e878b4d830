"""Training on all nodes of a graph, and its teachers; imports `training.trainer`, `evaluation`."""
