"""Decide whether a bundle may go live: gates, requirements, assignment, transitions."""
