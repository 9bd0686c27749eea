"""Build the built-in models with posttrain itself: tokenizer, pocket:base (`clm`), pocket:chat (`sft`).

Everything is drawn from one seed. The size is chosen so that 2 CPU cores need less than an hour: 3.2 M parameters. The
base learns documents; then the chat model learns conversations, with the loss on the answers.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.data.chat import Encoded, encode_all
from posttrain.data.records import Conversation
from posttrain.models.load import LoadedModel
from posttrain.models.save import save_model
from posttrain.training.config import TrainConfig
from posttrain.training.progress import RunProgress
from posttrain.training.run import train
from tools.pocket.corpus import conversations, documents, review
from tools.pocket.recipe import Recipe
from tools.pocket.tokenizer import train_tokenizer

__all__ = ["build"]

PACKED = 128
"""The tokens of a packed row of documents."""
DRAWN = 4096
"""The number of texts drawn and encoded at once. A stage learns the whole last draw, so the built-in models depend on
it."""
REPEAT = 0.15
"""The share of the turns that ask about relations with objects that follow no pattern."""


def _config(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.intermediate,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.key_value_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def packed(tokenizer: PreTrainedTokenizerFast, source: Iterator[str], tokens: int) -> list[Encoded]:
    """Return at least `tokens` tokens of texts in rows of `PACKED` tokens. Each text begins with <|endoftext|>.

    Every token is learned.
    """
    stream: list[int] = []
    rows: list[Encoded] = []
    while len(rows) * PACKED < tokens:
        for ids in tokenizer(list(islice(source, DRAWN)))["input_ids"]:
            stream += [tokenizer.bos_token_id, *ids]
        whole = len(stream) // PACKED * PACKED
        for start in range(0, whole, PACKED):
            ids = stream[start : start + PACKED]
            rows.append(Encoded(ids, ids, f"pocket documents, row {len(rows)}"))
        stream = stream[whole:]
    return rows


def chats(tokenizer: PreTrainedTokenizerFast, source: Iterator[Conversation], tokens: int) -> list[Encoded]:
    """Return encoded conversations with at least `tokens` tokens. Answers and a share of the questions are learned."""
    rows: list[Encoded] = []
    total = 0
    while total < tokens:
        encoded = encode_all(list(islice(source, DRAWN)), tokenizer, max_length=512).rows
        total += sum(len(row.input_ids) for row in encoded)
        rows += encoded
    return rows


def texts(seed: int, number: int) -> Iterator[str]:
    """Yield the texts that the tokenizer is trained on: `number` documents, and the turns of `number` conversations."""
    yield from islice(documents(seed), number)
    for conversation in islice(conversations(seed), number):
        for message in conversation.messages:
            yield message.content


def build(
    output: Path,
    recipe: Recipe | None = None,
    *,
    progress: Callable[[], RunProgress | None] = lambda: None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Make `output/base` and `output/chat` (float16 safetensors), and return the costs.

    An interrupted build continues when it is run again.
    """
    recipe = recipe or Recipe()
    began = time.monotonic()
    tokenizer = train_tokenizer(texts(recipe.seed, recipe.tokenizer_texts), recipe.vocabulary)
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(_config(recipe, tokenizer))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    loaded = LoadedModel(model, tokenizer, "pocket:base")
    say(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer):,} tokens of vocabulary")
    cost: dict[str, Any] = {
        "recipe": recipe.model_dump(),
        "machine": platform.processor() or platform.machine(),
    }
    for stage, objective, rows in (
        ("base-1", "clm", packed(tokenizer, documents(recipe.seed), recipe.base_tokens)),
        ("base-2", "clm", packed(tokenizer, review(recipe.seed), recipe.review_tokens)),
        ("chat-1", "sft", chats(tokenizer, conversations(recipe.seed, repeat=REPEAT), recipe.chat_tokens)),
        ("chat-2", "sft", chats(tokenizer, conversations(recipe.seed, repeat=REPEAT, last=True), recipe.last_tokens)),
    ):
        name = stage.partition("-")[0]
        config = TrainConfig.model_validate(
            {
                "model": f"pocket:{name}",
                "objective": objective,
                "optimizer": {
                    "kind": "muon",
                    "learning_rate": recipe.learning_rate,
                    "epochs": 1,
                    "schedule": "linear",
                    "warmup_share": 0.03,
                    "betas": (0.9, 0.98),
                    "weight_decay": 0.01,
                },
                "batch": {"tokens": recipe.batch_tokens},
                "save_every_steps": 250,
                "seed": recipe.seed,
            }
        )
        say(f"{stage}: {len(rows):,} rows, {sum(len(r.input_ids) for r in rows):,} tokens")
        result = train(config, loaded=loaded, rows=rows, output=output / "runs" / stage, progress=progress())
        loaded = LoadedModel(result.model, tokenizer, f"pocket:{name}")
        _ship(loaded, output / name, stops=("<|endoftext|>", "<|end|>") if name == "base" else ("<|end|>",))
        cost[stage] = {
            "tokens": result.tokens,
            "steps": result.steps,
            "loss_nats": result.loss_nats,
            "wall_s": result.wall_s,
        }
    cost["wall_s"] = time.monotonic() - began
    return cost


def _ship(loaded: LoadedModel, folder: Path, stops: tuple[str, ...]) -> None:
    """Save a float16 copy of the model, which itself stays float32. stops: the tokens that end generation."""
    copy = LlamaForCausalLM(loaded.model.config)
    copy.load_state_dict(loaded.model.state_dict())
    copy.generation_config = GenerationConfig(
        eos_token_id=loaded.tokenizer.convert_tokens_to_ids(list(stops)),
        bos_token_id=loaded.tokenizer.bos_token_id,
        pad_token_id=loaded.tokenizer.pad_token_id,
        do_sample=False,
    )
    save_model(copy.half(), loaded.tokenizer, folder)
