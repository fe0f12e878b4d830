"""The scheduler as machine code, for long simulations; imports all below and, when used, numba."""
