"""Seeded shops and shoppers with a known truth, for tests and demos."""
