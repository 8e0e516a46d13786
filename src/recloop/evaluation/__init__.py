"""Evaluation of bundles: metrics, queries, intervals, baseline comparison."""
