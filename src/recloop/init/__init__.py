"""Read a log file once, detect what its columns and events mean, and write recloop.toml."""
