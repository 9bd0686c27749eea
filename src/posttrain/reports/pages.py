"""From a view to HTML: the templates with the functions they use, for the report's page and for the plain tables."""

from __future__ import annotations

from collections.abc import Callable

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from posttrain.reports.formats import pretty
from posttrain.reports.texts import Message, Words, attribute, both, breakable, inline, say, sentences, text
from posttrain.reports.view import Table

__all__ = ["environment", "to_html"]


def environment(
    language: str, *, show: Callable[[Words], Markup] = both, word: Callable[[Words], Words] = lambda words: words
) -> Environment:
    """Return the templates. show: puts words on the page; word: the page's own wording of a message."""
    made = Environment(
        loader=PackageLoader("posttrain.reports", "templates"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip

    def attr(**messages: Words) -> Markup:
        return attribute(language, **{key: word(each) for key, each in messages.items()})

    def head(name: Words) -> Markup:
        return show(word(name)) if isinstance(name, Message | Markup) else breakable(pretty(name))

    made.globals.update(
        m=lambda words: show(word(words)),
        t=lambda key, **args: show(word(say(key, **args))),
        sentences=lambda messages: sentences([word(words) for words in messages]),
        attr=attr,
        head=head,
        say=say,
        inline=inline,
    )
    return made


def to_html(table: Table, language: str = "en") -> str:
    """Return a page of its own that holds a table alone, in one language."""

    def show(words: Words) -> Markup:
        return words if isinstance(words, Markup) else inline(text(words, language))

    template = environment(language, show=show).get_template("plain.html.jinja")
    return template.render(table=table, language=language, title=text(table.label, language))
