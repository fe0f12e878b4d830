"""`supernet bench PART` is the folder PART; imports everything, and nothing imports it."""
