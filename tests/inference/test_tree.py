"""The prefix tree and its plans, simulated: what each token of each batch sees must be its request's own text."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.inference.bins import TIP, Line, in_lines, lay_line, straight
from posttrain.inference.plain import TokenPair
from posttrain.inference.tree import Asked, Batch, Crop, Grow, Layout, Limits, Tree, in_rows, lay_out, plan

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=12)  # few different tokens: much is shared


@st.composite
def requests(draw: st.DrawFn) -> list[TokenPair]:
    """Pairs with common beginnings, contexts within other pairs' continuations, duplicates, empty continuations."""
    heads = draw(st.lists(tokens, min_size=1, max_size=3))
    texts = [draw(st.sampled_from(heads)) + draw(tokens) for _ in range(draw(st.integers(1, 12)))]
    pairs = [(text, draw(st.integers(1, len(text)))) for text in texts]
    return [TokenPair(text[:at], text[at:]) for text, at in pairs]


shapes = st.builds(
    Limits,
    grow=st.just(True),
    batch_tokens=st.sampled_from([1, 20, 60, 10_000]),
    answers=st.sampled_from([1, 3, 1000]),
)


def rows_of(pairs: Sequence[TokenPair]) -> list[list[int]]:
    return [[*p.context, *p.continuation][:-1] if p.continuation else [] for p in pairs]


@given(requests())
def test_least_tokens_are_the_distinct_beginnings(pairs: list[TokenPair]) -> None:
    beginnings = {tuple(row[:n]) for row in rows_of(pairs) for n in range(1, len(row) + 1)}
    tree = Tree(pairs)
    assert tree.least_tokens == len(beginnings) == tree.size[0]
    assert tree.row_tokens == sum(map(len, rows_of(pairs)))
    apart = Tree(pairs, share=False)
    assert apart.size[0] == sum(map(len, {tuple(row) for row in rows_of(pairs)}))
    assert apart.least_tokens == tree.least_tokens


def answered(asked: Asked, texts: Sequence[Sequence[int]], pairs: Sequence[TokenPair]) -> Iterator[tuple[int, int]]:
    """(request, step) of what is asked; each asked token must have seen the request's text up to there, in order.

    texts: per asked token, the token ids that it saw, by position.
    """
    for row, request, step in zip(asked.row.tolist(), asked.requests.tolist(), asked.steps.tolist(), strict=True):
        context, continuation = pairs[request]
        assert list(texts[row]) == [*context, *continuation[:step]]
        yield request, step


def by_position(ids: Sequence[int], positions: Sequence[int]) -> list[int]:
    assert sorted(positions) == list(range(len(positions)))  # each position once: no branch is mixed in
    return [token for _, token in sorted(zip(positions, ids, strict=True))]


def seen_in_rows(layout: Layout, cached: list[int]) -> list[list[int]]:
    """The texts that the asked tokens of a batch of rows saw."""
    width = layout.ids.shape[1]
    texts = []
    for token in layout.asked.tokens.tolist():
        row, at = divmod(token, width)
        assert at < layout.lengths[row]
        texts.append([*cached, *layout.ids[row, : at + 1].tolist()])
    return texts


def seen_in_line(layout: Line, cached: list[int]) -> list[list[int]]:
    """The texts that the asked tokens of a line saw; every key once."""
    ids = [*cached, *layout.ids.tolist()]
    positions = [*range(len(cached)), *layout.positions.tolist()]
    seen: list[Counter[int]] = [Counter() for _ in layout.ids]
    for dense in layout.dense:
        for query in dense.queries.tolist():
            seen[query].update(dense.keys.tolist())
    for bins in layout.bins:
        for b, t in np.argwhere(bins.real).tolist():
            mask = bins.mask[b, t] if bins.mask is not None else np.arange(bins.keys.shape[1]) <= t
            seen[bins.queries[b, t]].update((bins.keys[b][mask] + len(cached)).tolist())
    texts = []
    for token in layout.asked.tokens.tolist():
        assert set(seen[token].values()) == {1}
        keys = sorted(seen[token])
        texts.append(by_position([ids[k] for k in keys], [positions[k] for k in keys]))
    return texts


@settings(max_examples=150, deadline=None)
@given(requests(), shapes, st.booleans())
def test_every_request_is_answered_once_from_its_own_text(pairs: list[TokenPair], limits: Limits, line: bool) -> None:
    tree = Tree(pairs)
    cached: list[int] = []
    done: set[int] = set()
    found: Counter[tuple[int, int]] = Counter()
    for step in plan(tree, limits, in_lines if line else in_rows):
        if isinstance(step, Crop):
            assert step.length <= len(cached)
            cached = cached[: step.length]
        elif isinstance(step, Batch) and line:
            laid = lay_line(tree, step.rows[0], len(cached), done)
            found.update(answered(laid.asked, seen_in_line(laid, cached), pairs))
            assert len(laid.ids) <= max(limits.batch_tokens, TIP)
        else:
            layout = lay_out(tree, [step.nodes] if isinstance(step, Grow) else step.rows, done)
            texts = seen_in_rows(layout, cached)
            found.update(answered(layout.asked, texts, pairs))
            if isinstance(step, Grow):
                assert seen_in_line(straight(layout.ids[0], len(cached), layout.asked), cached) == texts
                cached = [*cached, *layout.ids[0].tolist()]
    wanted = [(i, step) for i, pair in enumerate(pairs) for step in range(len(pair.continuation))]
    assert found == Counter(wanted)


def test_without_a_cache_nothing_grows() -> None:
    pairs = [TokenPair([1] * 200 + [i], [2, 3]) for i in range(50)]
    steps = list(plan(Tree(pairs, share=False), Limits(grow=False, batch_tokens=1000, answers=1), in_rows))
    assert all(isinstance(step, Batch) for step in steps)
    assert sum(len(step.rows) for step in steps if isinstance(step, Batch)) == 50


def some(seed: int, length: int) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(10, 30_000, length).tolist()
    return ids


def questions(shots: int, subjects: int = 4, each: int = 50, text: bool = True) -> list[TokenPair]:
    """Like MMLU: subjects below one system prompt, each with its examples; four choices per question."""
    lengths = np.random.default_rng(0).integers(40, 140, subjects * each).tolist()
    pairs = []
    for subject in range(subjects):
        head = some(1, 10) + some(2 + subject, 15 + 90 * shots)
        for number in range(each):
            q = subject * each + number
            context = head + some(100 + q, lengths[q])
            pairs += [TokenPair(context, some(9 * q + c, 6) if text else [c]) for c in range(4)]
    return pairs


@pytest.mark.parametrize("shots", [0, 5])
@pytest.mark.parametrize("text", [False, True])
def test_hardly_more_than_the_least_is_forwarded(shots: int, text: bool) -> None:
    tree = Tree(questions(shots, text=text))
    forwarded = {}
    for divide in (in_lines, in_rows):
        forwarded[divide] = 0
        for step in plan(tree, Limits(), divide):
            if not isinstance(step, Crop):
                rows = [step.nodes] if isinstance(step, Grow) else step.rows
                forwarded[divide] += len(rows) * max(sum(map(tree.edge, row)) for row in rows)
    assert tree.least_tokens <= forwarded[in_lines] <= 1.01 * tree.least_tokens
    assert tree.least_tokens <= forwarded[in_rows] <= 1.11 * tree.least_tokens


def test_what_is_shared_by_all_is_read_once_below_it_what_a_subject_shares() -> None:
    def grown(tree: Tree, steps: Iterable[object]) -> list[tuple[int, int]]:
        return [(tree.start[s.nodes[0]], tree.end[s.nodes[-1]]) for s in steps if isinstance(s, Grow)]

    tree = Tree([TokenPair(some(1, 300) + pair.context, pair.continuation) for pair in questions(5)])
    nested = [(0, 310), *[(310, 775)] * 4]
    assert [stretch for stretch in grown(tree, plan(tree, Limits(), in_rows)) if stretch in nested] == nested
    assert grown(tree, plan(tree, Limits(batch_tokens=3000), in_lines)) == nested
    short = Tree(questions(5))  # ten tokens for all are read again with each subject
    assert grown(short, plan(short, Limits(batch_tokens=3000), in_lines)) == [(0, 475)] * 4
    assert grown(short, plan(short, Limits(batch_tokens=100_000), in_lines)) == []


def test_large_sets_are_planned_in_full_batches() -> None:
    head = some(1, 400)
    pairs = [TokenPair(head + some(i, 60) if i % 4 == 0 else [], [7, i % 4]) for i in range(20_000)]
    pairs = [TokenPair(pairs[i - i % 4].context, pair.continuation) for i, pair in enumerate(pairs)]
    tree = Tree(pairs)
    steps = [step for step in plan(tree, Limits(), in_lines) if isinstance(step, Batch)]
    assert 5000 * 60 < tree.least_tokens < 5000 * 61 + 400
    assert tree.least_tokens // 16384 <= len(steps) <= 1.01 * tree.least_tokens / 16384 + 1
