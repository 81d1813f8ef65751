"""What a results folder holds: scores, query scores, provenance, and comparisons of its methods."""
