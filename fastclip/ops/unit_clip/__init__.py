"""Adaptive gradient clipping: each unit of each gradient against the norm of its weights."""
