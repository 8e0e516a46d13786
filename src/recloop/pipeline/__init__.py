"""Every turn after the first: what came since, a child of the live bundle, and whether it may be let in."""
