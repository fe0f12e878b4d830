"""The scheduler without clock or I/O, and its parts; imports `slackfit`'s root."""
