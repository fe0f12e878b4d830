"""The verbs serve, replay and top; imports everything but the benchmarks."""
