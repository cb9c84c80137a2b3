"""What the command line asks for: one file per subject, composed into one class per command."""
