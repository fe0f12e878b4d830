"""The same scheduler in virtual time; imports `slackfit`'s root and scheduling."""
