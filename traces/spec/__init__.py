"""A SPEC in words becomes a `Trace`; imports `traces`' root, sources and generators."""
