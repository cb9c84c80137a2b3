"""Reference application: TransFuse for medical image segmentation, trained with fastclip."""

from fastclip.transfuse.model import ARCHITECTURES, TransFuse, create_model
from fastclip.transfuse.pretrained import load_backbones

__all__ = ["ARCHITECTURES", "TransFuse", "create_model", "load_backbones"]
