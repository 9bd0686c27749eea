"""Read rows for models with a head: labelled texts, tagged tokens and questions about texts.

- `{"text": ..., "label": ...}`; two texts are `text` and `text2`, or `premise` and `hypothesis`; the labels are a list
  when a text may have several;
- `{"tokens": [...], "tags": [...]}`, or a CoNLL file, see `conll`;
- `{"question": ..., "context": ..., "answers": [{"text": ..., "answer_start": ...}]}` (or SQuAD's columns, a list of
  texts and a list of starts); the list is empty when the context has no answer; or a SQuAD file.

A row without labels, tags or answers is read too: a model can label it, but training refuses it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from posttrain.config.json_text import BadJson, parse_json
from posttrain.data.fields import BadRow, keys_of, kind_of, missing, near_key, words_of
from posttrain.data.records import LabelledText, ReadingQuestion, SpanAnswer, TaggedTokens
from posttrain.errors import DataError, Problem

__all__ = ["is_squad", "labelled_of", "question_of", "squad_rows", "tagged_of"]


def labelled_of(row: Mapping[str, Any], location: str) -> LabelledText:
    """Return the record of a row with `text` and `label`. Raise BadRow, which says what was expected."""
    first, second = ("text", "text2") if "text" in row or "premise" not in row else ("premise", "hypothesis")
    text = words_of(row, first)
    text2 = words_of(row, second) if row.get(second) is not None else None
    if first == "premise" and text2 is None:
        raise BadRow("'hypothesis' is missing", missing("hypothesis", row, f"the row has {keys_of(row)}"))
    given = row.get("label") if row.get("label") is not None else row.get("labels")
    if given is None:
        _misspelt("label", row, "labels")
        return LabelledText(text, (), location, text2, gold=False)
    labels = tuple(_label(one, "label") for one in (given if isinstance(given, list) else [given]))
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise BadRow(f"the label '{twice[0]}' stands twice", "name each label once")
    return LabelledText(text, labels, location, text2)


def tagged_of(row: Mapping[str, Any], location: str) -> TaggedTokens:
    """Return the record of a row with `tokens` and `tags`. Raise BadRow, which says what was expected."""
    tokens = row.get("tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(t, str) and t for t in tokens):
        mend = 'such as ["Ada", "was", "born"]'
        mend = missing("tokens", row, mend) if tokens is None else mend
        raise BadRow("'tokens' must be a list of words, none of them empty", mend)
    given = row.get("tags")
    if given is None:
        _misspelt("tags", row)
        return TaggedTokens(tuple(tokens), (), location, gold=False)
    if not isinstance(given, list):
        raise BadRow(f"'tags' must be a list, got {kind_of(given)}", 'such as ["B-PER", "O", "O"]')
    if len(given) != len(tokens):
        raise BadRow(f"{len(given)} tags for {len(tokens)} tokens", "give one tag for each token")
    return TaggedTokens(tuple(tokens), tuple(_label(tag, "tags") for tag in given), location)


def question_of(row: Mapping[str, Any], location: str) -> ReadingQuestion:
    """Return the record of a row with `question`, `context` and `answers`. Raise BadRow when a field is wrong, or the
    context does not have an answer at the index that the row gives.
    """
    question, context = words_of(row, "question"), words_of(row, "context")
    key = row.get("id")
    name = str(key) if isinstance(key, str | int) else ""
    given = row.get("answers")
    if given is None and row.get("is_impossible") is not True:
        _misspelt("answers", row)
        return ReadingQuestion(question, context, (), location, name, gold=False)
    answers = dict.fromkeys(_span(*pair, context) for pair in _answer_pairs(given or []))
    return ReadingQuestion(question, context, tuple(answers), location, name)


def _misspelt(field: str, row: Mapping[str, Any], *others: str) -> None:
    """Raise BadRow when a row lacks a field but has a similar key. Without this check it would count as unlabelled."""
    near = near_key(field, {key: value for key, value in row.items() if key not in (field, *others)})
    if near:
        raise BadRow(f"'{field}' is missing", f"did you mean '{field}'? it has '{near}'")


def _answer_pairs(given: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (text, start) of each answer, from a list of objects or from an object of two lists. Raise BadRow."""
    if isinstance(given, dict):
        texts, starts = given.get("text"), given.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            mend = 'such as {"text": [], "answer_start": []}'
            raise BadRow("'answers' must have as many 'text' as 'answer_start'", mend)
        yield from zip(texts, starts, strict=True)
    elif isinstance(given, list) and all(isinstance(one, dict) for one in given):
        yield from ((one.get("text"), one.get("answer_start")) for one in given)
    else:
        raise BadRow("'answers' must be a list of objects", 'such as [{"text": "Paris", "answer_start": 24}]')


def _span(text: Any, start: Any, context: str) -> SpanAnswer:
    if not isinstance(text, str) or not text:
        raise BadRow(f"an answer's 'text' must be a string, got {kind_of(text)}", "an empty list: no answer there")
    count = context.count(text)
    if start is None and count == 1:
        return SpanAnswer(text, context.index(text))
    if isinstance(start, bool) or not isinstance(start, int):
        where = f"the answer stands {count} times in the context" if count else "the answer is not in the context"
        raise BadRow(f"'answer_start' must be a number, got {kind_of(start)}", where)
    if start < 0 or context[start : start + len(text)] != text:
        there = context[max(start, 0) : max(start, 0) + len(text)]
        mend = f"it stands at {context.index(text)}" if count else "the answer must be a part of the context, as it is"
        raise BadRow(f"at character {start} the context has {there!r}, not the answer {text!r}", mend)
    return SpanAnswer(text, start)


def _label(value: Any, field: str) -> str:
    if isinstance(value, bool | int):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"'{field}' must be a name, got {kind_of(value)}", "write the class's name")
    return value.strip()


# ---- files ---------------------------------------------------------------------------------------------------------


SQUAD = '{"data": [{"paragraphs": [{"context": ..., "qas": [{"id": ..., "question": ..., "answers": [...]}]}]}]}'


def is_squad(text: str) -> bool:
    """Return whether the text of a JSON file looks like SQuAD's: one object with `data` and `paragraphs`."""
    return text.lstrip().startswith("{") and '"data"' in text and '"paragraphs"' in text


def squad_rows(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (location, row or BadRow) of every question of a SQuAD file (SQuAD, DRCD, CMRC). The location of a row ends
    with the question's id. Raise DataError when the file is not valid JSON or has no list `data`.
    """
    try:
        value = parse_json(text)
    except BadJson as bad:
        location = f"{name}:{bad.line}" if bad.line else name
        raise DataError(Problem(location, bad.cause, bad.mend or "copy the file again")) from bad
    articles = value.get("data") if isinstance(value, dict) else None
    if not isinstance(articles, list):
        raise DataError(Problem(name, "not a SQuAD file: no list 'data'", SQUAD))
    for a, article in enumerate(articles):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            yield f"{name}: data[{a}]", BadRow("not a SQuAD file: no list 'paragraphs'", SQUAD)
            continue
        for p, paragraph in enumerate(paragraphs):
            location = f"{name}: data[{a}].paragraphs[{p}]"
            asked = paragraph.get("qas") if isinstance(paragraph, dict) else None
            if not isinstance(asked, list):
                yield location, BadRow("not a SQuAD file: no list 'qas'", SQUAD)
                continue
            for q, qa in enumerate(asked):
                if not isinstance(qa, dict) or qa.get("id") is None:
                    yield f"{location}.qas[{q}]", BadRow("not a SQuAD file: a question without 'id'", SQUAD)
                else:
                    yield f"{name}#{qa['id']}", {"context": paragraph.get("context"), **qa}
