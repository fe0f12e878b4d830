"""Measuring subnets and searching the Pareto set; imports config, data, strategies."""
