"""Event intake: parsing, numbering, causal rules and commits to the log."""
