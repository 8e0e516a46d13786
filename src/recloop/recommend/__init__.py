"""Path from a user state to a list, in serving and in evaluation."""
