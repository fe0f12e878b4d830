"""What is done with one subnet: cut out, counted, calibrated, sorted; imports `supernet`'s root."""
