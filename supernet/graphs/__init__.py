"""Graphs, and what a query reads of them: stores, samplers, sizes; imports none of ours."""
