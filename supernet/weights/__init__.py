"""Other people's weights in and out; imports `supernet`'s root, layers and subnets."""
