"""Floor 2: counters, logs. Written to once per batch, read once per scrape."""
