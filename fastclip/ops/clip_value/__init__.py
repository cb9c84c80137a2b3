"""Gradients clamped to an interval, element by element."""
