"""Floor 2: what executes a batch. One file per kind of backend; each imports its own heavy package."""
