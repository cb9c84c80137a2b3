"""One op a file: its pure-torch reference, its registration, and who owns which device."""
