"""Measure a bundle: metrics, queries, intervals, comparison with baselines."""
