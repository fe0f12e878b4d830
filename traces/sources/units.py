"""Units that times in a log may have, in seconds; `iso` is a text such as 2023-11-16 18:17:03."""

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9, "iso": 1.0}
