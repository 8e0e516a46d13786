"""Timestamps of texts and numbers as int64 microseconds UTC."""
