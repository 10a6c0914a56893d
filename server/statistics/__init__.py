"""Statistics on counts and scores: effects, evidence, detectors, confidence sequences. No I/O, and no hidden state."""
