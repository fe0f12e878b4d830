"""Subnets of a graph network on sampled neighbourhoods, on a CPU."""
