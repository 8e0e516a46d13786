"""Data: read, check, clean and split the log, and write ``data/``."""
