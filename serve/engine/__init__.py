"""One scheduler and one executor in real time; imports no protocol and no Ray."""
