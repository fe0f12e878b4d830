"""`supernet bench streams`: streams under deadlines; imports everything below `serve`."""
