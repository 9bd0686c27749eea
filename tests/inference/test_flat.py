"""Attention over a line: kernels with their log-sum-exp, and whole lines against softmax over each token's own path."""

from typing import Any

import pytest
import torch

from posttrain.inference import flat
from posttrain.inference.bins import in_lines, lay_line
from posttrain.inference.flat import NAME, attend, attending, by_line, fused
from posttrain.inference.protocol import Usage
from posttrain.inference.scoring import score
from posttrain.inference.support import support
from posttrain.inference.tree import Batch, Crop, Limits, Tree, plan
from posttrain.models.logits import core_of
from tests.inference.test_scoring import like_mmlu, made


@pytest.mark.parametrize("width", [8, 5])  # values as wide as queries, and not (the kernel wants them equal)
@pytest.mark.parametrize("masked", ["mask", "causal", "none"])
def test_attention_with_its_weight(width: int, masked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 40, 8), torch.randn(2, 3, 40, 8), torch.randn(2, 3, 40, width)
    seen = torch.rand(2, 1, 40, 40) > 0.5
    seen |= torch.eye(40, dtype=torch.bool)
    mask = torch.zeros(2, 1, 40, 40).masked_fill(~seen, torch.finfo(torch.float32).min)
    scores = 0.3 * q @ k.transpose(-1, -2)
    if masked == "mask":
        scores = scores + mask
    elif masked == "causal":
        scores = scores.masked_fill(torch.ones(40, 40).triu(1).bool(), -torch.inf)
    monkeypatch.setattr(flat, "SCORES", 2 * 3 * 40 * 7)  # plain products take seven queries at once
    out, total = attend(q, k, v, mask if masked == "mask" else None, scale=0.3, causal=masked == "causal")
    torch.testing.assert_close(out, scores.softmax(-1) @ v, atol=1e-5, rtol=0)
    torch.testing.assert_close(total, scores.logsumexp(-1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("torchs", ["gone", "other arguments", "other results"])
def test_without_torchs_private_kernel_results_are_the_same(torchs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch in which the kernel is gone, or has become another, costs time and nothing else."""
    name = "_scaled_dot_product_flash_attention_for_cpu"
    true = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    pairs = like_mmlu(shots=60, each=4)
    assert fused("cpu", torch.float32) is not None
    wanted = score(made("gemma3"), pairs, usage=Usage())

    def gone(*args: Any, **kwargs: Any) -> Any:
        raise AttributeError(f"'_OpNamespace' 'aten' object has no attribute '{name}'")

    def other_arguments(query: Any, key: Any, value: Any) -> Any:
        return query

    def other_results(*args: Any, **kwargs: Any) -> Any:
        out, total = true(*args, **kwargs)
        return out, total / 0.6931  # in bits

    now = {"gone": gone, "other arguments": other_arguments, "other results": other_results}
    monkeypatch.setattr(torch.ops.aten, name, now[torchs])
    fused.cache_clear()
    try:
        assert fused("cpu", torch.float32) is None
        model = made("gemma3")
        found = score(model, pairs, usage=Usage())
        assert support(model, 80).kind == "flat"
    finally:
        fused.cache_clear()
    for one, other in zip(found, wanted, strict=True):
        assert one.sum_nats == pytest.approx(other.sum_nats, abs=1e-4)
        assert (one.tokens, one.greedy) == (other.tokens, other.greedy)


@pytest.mark.parametrize("window", [3, 10, 40, 70, 500])
@pytest.mark.parametrize("added", [0, 5])
@torch.no_grad()
def test_lines_with_windows_caps_sinks_and_prefixes_by_hand(window: int, added: int) -> None:
    draw = torch.Generator().manual_seed(0)
    width, cap, cached = 8, 2.0, 0
    tree = Tree(like_mmlu(shots=50, each=3))
    parts: set[str] = set()
    for step in plan(tree, Limits(batch_tokens=100), in_lines):
        if not isinstance(step, Batch):
            cached = step.length if isinstance(step, Crop) else tree.end[step.nodes[-1]]
            continue
        line = lay_line(tree, step.rows[0], cached, set())
        parts |= {"cache"} if cached else set()
        parts |= {"dense"} if line.dense else set()
        count = len(line.ids)
        q = torch.randn(1, 4, count, width, generator=draw)
        k, v = (torch.randn(1, 2, added + cached + count, width, generator=draw) for _ in range(2))
        sink = torch.randn(4, generator=draw)
        with attending(line, cached, torch.device("cpu"), torch.float32):
            found, _ = flat._attention(
                torch.nn.Module(), q, k, v, None, scaling=0.5, sliding_window=window, softcap=cap, s_aux=sink
            )
        paths: dict[int, list[int]] = {}  # node -> the keys of its tokens and of those above, by position
        begin = cached
        for node in step.rows[0]:
            paths[node] = [*paths.get(tree.parent[node], range(cached)), *range(begin, begin + tree.edge(node))]
            for key in range(begin, begin + tree.edge(node)):
                seen = [k for k in paths[node] if k <= key][-window:]
                keys = [*range(added), *(added + k for k in seen)]
                for head in range(4):
                    scores = cap * torch.tanh(0.5 / cap * k[0, head // 2, keys] @ q[0, head, key - cached])
                    shares = torch.cat([scores, sink[head : head + 1]]).softmax(0)[:-1]
                    expected = shares @ v[0, head // 2, keys]
                    torch.testing.assert_close(found[0, key - cached, head], expected, atol=1e-5, rtol=0)
            begin += tree.edge(node)
    assert parts == {"cache", "dense"}


def test_attention_is_put_back() -> None:
    model = core_of(made("llama-eager"))
    context = by_line(model)
    context.__enter__()
    assert model.config._attn_implementation == NAME
    assert not context.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert model.config._attn_implementation == "eager"


def test_outside_of_a_line_it_is_sdpa() -> None:
    model = made("llama")
    ids, mask = torch.tensor([[5, 6, 7, 0]]), torch.tensor([[1, 1, 1, 0]])
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).logits
        with by_line(core_of(model)):
            assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, expected)
