"""Lightning: its own clipping runs on fastclip, and norms of each layer go to its loggers.

pip install lightning
python examples/lightning_trainer.py
"""

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastclip
from fastclip.integrations.lightning import NormMonitorCallback


class Classifier(pl.LightningModule):
    """Two layers; parameter groups by fastclip."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 4))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        inputs, labels = batch
        loss = nn.functional.cross_entropy(self.layers(inputs), labels)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = fastclip.param_groups(self, lr=1e-2, weight_decay=0.01)
        return torch.optim.AdamW(groups)


def main(epochs: int = 5, folder: str = "runs/lightning") -> pl.Trainer:
    """Train, and leave metrics.csv in the folder of the logger."""
    pl.seed_everything(0, verbose=False)
    inputs = torch.randn(256, 20)
    data = DataLoader(TensorDataset(inputs, inputs[:, :4].argmax(1)), batch_size=32)
    trainer = pl.Trainer(
        max_epochs=epochs,
        gradient_clip_val=1.0,
        callbacks=[NormMonitorCallback(every=10, by="depth", depth=2)],
        logger=CSVLogger(folder),
        log_every_n_steps=10,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with fastclip.patched_torch():  # Lightning calls torch.nn.utils.clip_grad_norm_
        trainer.fit(Classifier(), data)
    print(f"loss {trainer.callback_metrics['loss']:.3f}; norms are in {trainer.logger.log_dir}")
    return trainer


if __name__ == "__main__":
    main()
