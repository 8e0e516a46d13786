"""Over HTTP: one process that answers, takes events, and says how it is."""
