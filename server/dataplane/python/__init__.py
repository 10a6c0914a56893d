"""The python kind of the data plane: the readable reference, always available."""
