"""What keeps a run's work: its lock, checkpoints kept, what a resumed run must share, failures."""
