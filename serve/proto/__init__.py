"""The Open Inference Protocol over gRPC: our proto file, and the stubs that `make proto` makes."""
