"""Before training: fetch a data set, look at it."""
