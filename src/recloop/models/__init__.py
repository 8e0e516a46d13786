"""The shelf: one file a model, all behind the contract of `recloop.models.base`."""
