"""`fastclip bench`: torch against fastclip on this machine, in a real training step."""
