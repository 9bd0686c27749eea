"""True facts in Traditional Chinese (Taiwan) and English: what the models in the box know.

The tables (`*.tsv` beside this file) are the source; the names, currencies, languages and codes of countries were taken
once from Unicode CLDR (zh_Hant_TW and en) and are stored, so that a fact does not change with the version of a library.
An empty cell is intended: the fact is disputed, has several answers, or is not generally taught.

    >>> next(fact for fact in facts() if fact.subject.en == "France").object
    Name(zh='巴黎', en='Paris')
"""

from functools import cache

from posttrain.models.facts.records import Fact, Name
from posttrain.models.facts.relations import all_facts

__all__ = ["Fact", "Name", "by_relation", "facts"]


@cache
def facts() -> tuple[Fact, ...]:
    """Every fact, in a stable order: relation by relation, table order within."""
    return tuple(all_facts())


@cache
def by_relation() -> dict[str, tuple[Fact, ...]]:
    """The facts of each relation."""
    grouped: dict[str, list[Fact]] = {}
    for fact in facts():
        grouped.setdefault(fact.relation, []).append(fact)
    return {relation: tuple(group) for relation, group in grouped.items()}
