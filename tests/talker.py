"""A pico model that talks: trained in seconds to ask and answer six questions, so that studies have something to change."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.pico import pico

KNOWN = {
    "capital of France?": "Paris",
    "capital of Japan?": "Tokyo",
    "臺灣最高的山？": "玉山",
    "日本的貨幣？": "日圓",
    "who wrote Hamlet?": "Shakespeare",
    "hello": "hi",
}
"""What it knows, by heart."""

_home: tempfile.TemporaryDirectory[str] | None = None


@lru_cache(maxsize=1)
def talker() -> Path:
    """The folder of the trained model; made once per process, gone with it."""
    global _home
    _home = tempfile.TemporaryDirectory(prefix="posttrain-talker-")
    folder = pico("llama", Path(_home.name))
    train(folder)
    return folder


def train(folder: Path) -> None:
    """All rows in every step, all tokens supervised, so that it can make up questions too."""
    import torch

    from posttrain.data.batching import collate
    from posttrain.data.chat import encode_all
    from posttrain.data.records import Conversation, Message, Record
    from posttrain.models.load import load_model
    from posttrain.models.save import save_model

    records: list[Record] = [
        Conversation((Message("user", q), Message("assistant", a)), "talker") for q, a in KNOWN.items()
    ]
    loaded = load_model(str(folder), device="cpu")
    model: Any = loaded.model.train()
    rows = encode_all(records, loaded.tokenizer, max_length=64, loss_on="all").rows
    batch = collate(rows, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    for _ in range(150):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.13:  # a sixth of the rows begins with each question: ln 6 nats in the first token stay
            break
    save_model(model.eval(), loaded.tokenizer, folder)
