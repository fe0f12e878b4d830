"""The verbs search, calibrate and precision; imports the rest of `training`."""
