"""The engine of streams, iteration by iteration on one decoder; imports `serve.engine`."""
