"""One scheduler and one executor in real time; knows no protocol and no Ray."""
