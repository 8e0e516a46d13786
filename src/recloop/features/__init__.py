"""What the model sees: meaning of events, state, vocabularies and the one encoding that both sides call."""
