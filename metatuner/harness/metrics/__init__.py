"""Metrics: pure functions of an extracted answer and its references, known to no model."""
