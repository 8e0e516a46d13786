"""Quality report of a log: counts, checks, sentences and pages."""
