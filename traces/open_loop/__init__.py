"""A trace sent to a live server, and what came back judged; imports root, report, sources."""
