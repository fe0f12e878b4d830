"""How good any schedule could be; imports whatever else `slackfit` has, and scipy."""
