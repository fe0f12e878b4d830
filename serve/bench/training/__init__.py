"""`supernet bench training`: every training strategy; imports anything."""
