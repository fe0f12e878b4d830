"""One context over several workers, measured and simulated; imports `subnetact` and `slackfit`."""
