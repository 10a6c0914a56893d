"""Podium's server: seven floors, imports point down (docs/ARCHITECTURE.md)."""

import os

# gRPC reads this when it is imported. At its default it writes a line for every TLS handshake that fails, which any stranger
# can make fail: a way to fill the disk.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
