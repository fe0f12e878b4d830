"""Text by one resident decoder, token by token; imports `subnetact`'s root and what is below it."""
