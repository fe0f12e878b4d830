"""Subnets of a graph network, on a CPU; imports `subnetact`'s root, its views and `supernet`."""
