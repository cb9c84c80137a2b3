"""Adaptive gradient clipping, unit by unit, in Triton."""
