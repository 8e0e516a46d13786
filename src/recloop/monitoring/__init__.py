"""Is it what we trained, is it good? Parity, health, the report."""
