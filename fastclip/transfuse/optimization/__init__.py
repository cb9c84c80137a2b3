"""What a step is made of: the optimizer and its groups, clipping, the average of weights."""
