"""Part onebit of `supernet bench actuation`; imports `training` and what other benches share."""
