"""Seeded simulators of shops and users with known true utilities."""
