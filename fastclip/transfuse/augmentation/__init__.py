"""How training images are varied: a whole batch at once, on the device that trains."""
