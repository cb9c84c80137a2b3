"""One folder an op: its reference, one file for each implementation, and the choice among them."""
