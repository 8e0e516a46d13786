"""Write events into the log: parse, number, apply causal rules, commit."""
