"""The native door: calls that arrive in C++ and are answered by the same handlers as grpcio's."""
