"""A trained network in a file that runs without this package."""
