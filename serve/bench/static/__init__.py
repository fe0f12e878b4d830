"""Part `static`: our front against static networks of others; imports all of serve."""
