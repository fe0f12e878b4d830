"""What an attacker learns from a server that chooses models; imports bench and all below it."""
