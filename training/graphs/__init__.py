"""Training on the nodes of a graph: the whole graph at once, a teacher, layer-pair distillation."""
