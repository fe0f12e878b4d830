"""Graphs and what a query reads of them: stores, samplers, predicted sizes; numpy alone."""
