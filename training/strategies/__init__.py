"""Which subnets a step trains, from what, at which rate; imports `training`'s config."""
