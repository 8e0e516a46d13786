"""Built-in models, one per file, with the contract of `recloop.models.base`."""
