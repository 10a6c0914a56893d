"""Monitoring: what is sampled of served predictions, counted against a baseline, and judged."""
