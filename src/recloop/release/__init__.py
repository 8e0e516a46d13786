"""Releases: gates, input check, user assignment and promotion requirements."""
