"""Detect the columns and events of a log file and write recloop.toml."""
