"""What `make gpu` runs: tests, then times of every op on a GPU."""
