"""Subnets as compiled graphs on a CPU; imports `subnetact`'s root, nothing of views or cuda."""
