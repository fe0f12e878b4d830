"""Part onebit of `supernet bench actuation`: one bit per weight, its kernel and what it costs."""
