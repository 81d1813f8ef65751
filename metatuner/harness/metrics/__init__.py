"""Metrics: pure functions of an extracted answer and its references. They use no model."""
