"""Measuring a latency profile, and whether it still holds; imports the rest of `subnetact`."""
