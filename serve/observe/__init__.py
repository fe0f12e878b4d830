"""Metrics, statistics, logs, spans: told of every end, tells nobody; imports engine."""
