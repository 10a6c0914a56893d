"""Floor 5: use cases that read top to bottom like recipes."""
