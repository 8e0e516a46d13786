"""Monitoring: verification, list health, shadow comparison, experiments and report."""
