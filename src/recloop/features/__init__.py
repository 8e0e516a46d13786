"""Model inputs: event meaning, user state, vocabularies and shared encoding."""
