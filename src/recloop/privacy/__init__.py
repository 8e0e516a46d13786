"""Rights of one person: export of all stored data, and erasure."""
