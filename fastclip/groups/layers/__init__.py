"""Layer ids for layer-wise learning-rate decay: 0 at the input, the largest at the head."""
