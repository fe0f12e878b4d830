"""A trace served in virtual time: policies, capacity, grids; imports all but the commands."""
