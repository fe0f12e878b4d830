"""Metrics, statistics, logs, spans of what the engine ends; imports engine."""
