"""Traffic that is made: arrivals, patterns, fits; imports `traces`' root and sources."""
