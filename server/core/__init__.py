"""Floor 1: the words every room shares. Values, errors, settings and the clock; no I/O."""
