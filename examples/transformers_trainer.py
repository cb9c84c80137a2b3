"""transformers' Trainer: fastclip clips, groups the parameters and adds norms to its logs.

    pip install transformers accelerate
    python examples/transformers_trainer.py

The network is a small BERT from a configuration, and the text is made up: nothing is downloaded.
"""

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import fastclip
from fastclip.integrations.transformers import NormMonitorCallback


def sentences(count: int) -> list[dict[str, torch.Tensor]]:
    """Token numbers; the label says which of two words is in front."""
    tokens = torch.randint(10, 100, (count, 12))
    labels = torch.randint(0, 2, (count,))
    tokens[:, 0] = labels + 5
    return [
        {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": label}
        for row, label in zip(tokens, labels, strict=True)
    ]


def main(epochs: int = 4, folder: str = "runs/transformers") -> list[dict[str, float]]:
    """Train; what the Trainer logged."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    model = BertForSequenceClassification(config)
    groups = fastclip.param_groups(model, lr=3e-3, weight_decay=0.01)
    arguments = TrainingArguments(
        output_dir=folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=16,
        logging_steps=8,
        max_grad_norm=1.0,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=sentences(128),
        optimizers=(torch.optim.AdamW(groups), None),
        callbacks=[NormMonitorCallback()],
    )
    with fastclip.patched_torch():  # the Trainer clips by torch.nn.utils, through Accelerate
        trainer.train()
    return trainer.state.log_history


if __name__ == "__main__":
    main()
