"""The verbs of `traces` and how each of them ends; imports the rest of `traces`."""
