"""Students that copy a victim from its answers; imports bench (its journal) and torch."""
