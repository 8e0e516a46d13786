"""JSON files: records, paths of nested values, and columns of text."""
