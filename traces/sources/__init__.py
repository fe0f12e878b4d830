"""Published traces and logs of yours, read; imports `traces`' root."""
