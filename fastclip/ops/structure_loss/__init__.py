"""The structure loss of every image, head and channel, and its gradient."""
