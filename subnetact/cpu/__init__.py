"""Packed slices for oneDNN on a CPU; imports `subnetact`'s root, nothing of views or cuda."""
