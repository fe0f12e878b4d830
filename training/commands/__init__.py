"""The verbs bootstrap, search, calibrate and precision; imports the rest of `training`."""
