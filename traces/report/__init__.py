"""JSON, tables, pictures and the page of a run; imports `traces`' root and sources."""
