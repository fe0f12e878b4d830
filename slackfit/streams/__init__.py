"""What streams are, many outputs each: queries, costs, figures; imports `slackfit`'s root."""
