"""HTTP service: recommendations, event intake, releases, status and the console."""
