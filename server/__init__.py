"""Podium's server: seven floors, imports point down (docs/ARCHITECTURE.md)."""
