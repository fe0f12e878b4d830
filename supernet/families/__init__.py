"""One network per file, each a registered family; imports `supernet`'s root and layers."""
