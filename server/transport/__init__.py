"""Floor 6: the door. The only place that knows protobuf messages and gRPC status codes."""
