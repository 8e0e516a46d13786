"""From a state to a list: the same steps for a request, an evaluation and a proof."""
