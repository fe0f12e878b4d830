"""Plans of streams: promises on first output, period and fluidity; imports `traces.planning`."""
