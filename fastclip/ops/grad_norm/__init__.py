"""Norms of many tensors and their scaling in place: clipping, reports and monitors call this."""
