"""Masks for images."""
