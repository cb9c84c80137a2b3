"""report.html: what a run was and how well it did, in one file that needs no network."""
