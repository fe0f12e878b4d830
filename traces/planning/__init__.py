"""The cheapest fleet for a trace and a promise, with a certificate; imports all but commands."""
