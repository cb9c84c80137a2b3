"""What is measured: fastclip's own model, one of a library or one of the user's."""
