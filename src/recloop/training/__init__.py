"""From events to a bundle: batches, losses, fitting, export, evaluation."""
