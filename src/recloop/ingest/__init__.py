"""Event intake: parse rows, number them, apply causal rules and commit to the log."""
