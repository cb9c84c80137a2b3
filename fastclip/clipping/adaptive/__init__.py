"""Clippers whose limit follows training: AutoClip, ZClip, AGC."""
