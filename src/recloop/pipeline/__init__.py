"""Pipeline: the first run, later updates, gates and retention."""
