"""Files that appear whole, and checkpoints."""
