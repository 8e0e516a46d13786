"""Model inputs: event meaning, user state, vocabularies and the shared encoding."""
