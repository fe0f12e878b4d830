"""Streams scheduled iteration by iteration; imports `slackfit`'s root, no policy."""
