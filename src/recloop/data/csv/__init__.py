"""Text tables: their form and their rows."""
