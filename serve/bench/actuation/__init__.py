"""`supernet bench actuation`: subnets on this CPU against static networks; imports anything."""
