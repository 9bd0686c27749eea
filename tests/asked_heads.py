"""Models with a head, asked with plain texts."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.data.records import LabelledText, ReadingQuestion, TaggedTokens
from posttrain.inference.heads import Classified, FoundSpan, Tagged, answer_records, classify_records, tag_records
from posttrain.models.load import LoadedModel


def classify(loaded: LoadedModel, texts: Sequence[str | tuple[str, str]]) -> list[Classified]:
    pairs = [(text, None) if isinstance(text, str) else text for text in texts]
    records = [LabelledText(one, (), f"text {i + 1}", two, gold=False) for i, (one, two) in enumerate(pairs)]
    return classify_records(loaded, records)


def tag(loaded: LoadedModel, sentences: Sequence[Sequence[str]]) -> list[Tagged]:
    records = [TaggedTokens(tuple(s), (), f"sentence {i + 1}", gold=False) for i, s in enumerate(sentences)]
    return tag_records(loaded, records)


def answer_spans(loaded: LoadedModel, questions: Sequence[str], contexts: Sequence[str]) -> list[FoundSpan]:
    records = [
        ReadingQuestion(question, context, (), f"question {i + 1}", gold=False)
        for i, (question, context) in enumerate(zip(questions, contexts, strict=True))
    ]
    return answer_records(loaded, records)
