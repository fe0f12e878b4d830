"""One context over several worker processes; imports `subnetact.decoding`, the root, below."""
