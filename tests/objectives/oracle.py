"""TRL's own trainers on pico models, as an outside oracle: their loss on rows whose tokens are ours.

Conversations are rendered by pico's chat template on both sides; the tests check that the token ids are the same before
they compare losses.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.data.preferences import graded_of, preference_of
from posttrain.data.records import Graded, Preference
from posttrain.models.load import LoadedModel, load_model
from posttrain.training.forms.base import FormSetup, Preparation
from posttrain.training.reference import Reference

SETTINGS: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    "max_length": None,
}


def turns(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


PAIRS = [
    {"prompt": turns("user", p), "chosen": turns("assistant", c), "rejected": turns("assistant", r)}
    for p, c, r in (
        ("What is the capital of France?", "Paris.", "The capital is London, I think."),
        ("哪一座山是全臺灣最高的？", "臺灣最高的山是玉山。", "雪山。"),
        ("Hello", "Hello, who are you?", "No."),
        ("Who wrote Hamlet? 誰？", "William Shakespeare.", "William"),
    )
]
GRADED = [
    {"prompt": turns("user", p), "completion": turns("assistant", a), "label": label}
    for p, a, label in (
        ("What is the capital of France?", "Paris.", True),
        ("哪一座山是全臺灣最高的？", "雪山。", False),
        ("Hello", "Hello, who are you?", True),
        ("Who wrote Hamlet? 誰？", "William, I think, or another.", False),
        ("日本的貨幣是？", "日圓。", True),
    )
]


def preferences(**more: Any) -> list[Preference]:
    return [preference_of({**row, **more}, f"pairs.jsonl:{i + 1}") for i, row in enumerate(PAIRS)]


def graded() -> list[Graded]:
    return [graded_of(row, f"graded.jsonl:{i + 1}") for i, row in enumerate(GRADED)]


def policy_and_reference(folder: Path) -> tuple[LoadedModel, LoadedModel]:
    """The pico model as it is, as the reference, and one that has moved away from it."""
    policy, reference = load_model(str(folder), device="cpu"), load_model(str(folder), device="cpu")
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    return policy, reference


def trainer(
    kind: str, folder: Path, tmp_path: Path, rows: list[dict[str, Any]], *, swapped: bool = False, **options: Any
) -> Any:
    """A DPOTrainer or KTOTrainer on copies of the models; swapped: policy and reference change places."""
    trl = pytest.importorskip("trl", reason="TRL is not installed: it is the oracle here, a dev dependency")
    from datasets import Dataset

    policy, reference = policy_and_reference(folder)
    if swapped:
        policy, reference = reference, policy
    name = kind.removesuffix("Trainer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(trl, kind)(
            model=policy.model,
            ref_model=reference.model,
            args=getattr(trl, f"{name}Config")(output_dir=str(tmp_path), **SETTINGS, **options),
            train_dataset=Dataset.from_list(rows),
            processing_class=policy.tokenizer,
        )


def loss_of(made: Any) -> tuple[dict[str, Any], float]:
    """(the batch of all rows, TRL's loss on it)."""
    batch = made.data_collator([made.train_dataset[i] for i in range(len(made.train_dataset))])
    made.model.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return batch, float(made.compute_loss(made.model, dict(batch)))


def setup(config: Any, function: Any, tokenizer: Any) -> FormSetup:
    from functools import partial

    return FormSetup(config, partial(function, config=config), tokenizer, pad_id=0)


def preparation(policy: Any, reference: Any, rows: list[Any], **more: Any) -> Preparation:
    given = Preparation(policy, rows, [], [], 4096, None, "", Reference(policy, reference), lambda text: None, (), 0)
    return given._replace(**more)
