"""NormMonitor: what the norms of a run do, measured around the optimizer's steps."""
