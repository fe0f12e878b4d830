"""Graphs, streams and slices on a CUDA device; imports `subnetact`'s root, no views, no cpu."""
