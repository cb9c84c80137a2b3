"""Command-line arguments and configuration files into dataclasses."""
