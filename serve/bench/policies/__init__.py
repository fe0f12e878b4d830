"""`supernet bench policies`: every policy in the simulator; imports anything but torch and Ray."""
