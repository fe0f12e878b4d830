"""`supernet bench serving`: live servers, ours and peers; imports anything."""
