"""Reference application: TransFuse for medical image segmentation, trained with fastclip."""

try:
    from fastclip.transfuse.network.factory import create_model
    from fastclip.transfuse.network.model import ARCHITECTURES, TransFuse
    from fastclip.transfuse.network.pretrained import load_backbones
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"fastclip.transfuse needs {error.name}: pip install 'fastclip-torch[train]'",
        name=error.name,
    ) from error

__all__ = ["ARCHITECTURES", "TransFuse", "create_model", "load_backbones"]
