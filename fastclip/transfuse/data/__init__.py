"""What the trainer reads: formats, masks, layouts of folders, splits, and the cache on disk."""

from fastclip.transfuse.data.load import load_split
from fastclip.transfuse.data.samples import DataError, Samples

__all__ = ["DataError", "Samples", "load_split"]
