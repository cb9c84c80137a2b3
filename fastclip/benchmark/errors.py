"""What `fastclip bench` cannot do, in words for the person who asked."""


class BenchmarkError(Exception):
    """A model, device or argument that cannot be measured; the message says what to change."""
