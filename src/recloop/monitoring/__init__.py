"""Verification, list health, shadow comparison, experiments and report."""
