"""Chapter 1, what happened: read the log, judge it, clean it, split it, write ``data/``."""
