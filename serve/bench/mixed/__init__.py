"""Part `mixed` of `supernet bench serving`: mixed, hostile and shared traffic; imports anything."""
