"""The Open Inference Protocol: its messages, and names that both sides use; imports protobuf."""
