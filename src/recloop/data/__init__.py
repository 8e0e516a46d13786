"""Chapter 1, data: read, check, clean and split the log, and write ``data/``."""
