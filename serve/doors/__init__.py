"""HTTP and gRPC, each a door and its messages; imports access, models, observe, engine, proto."""
