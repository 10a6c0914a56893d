"""The native kind of the data plane: C++ that takes requests from its own sockets, and hands whole batches to Python."""
