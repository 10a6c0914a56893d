"""Features in the server: which views a version reads, proven at its load, and joined into its batches. Floor 2."""
