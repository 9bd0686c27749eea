"""Ask an edited model what its edits wanted it to say, and judge the answers as the change exam does."""

from __future__ import annotations

from posttrain.editing.edits import Edit
from posttrain.editing.said import Said, answers_to, form_of
from posttrain.editing.session import EditSession
from posttrain.exams.matching import matches

__all__ = ["ask_all"]


def ask_all(session: EditSession) -> None:
    """Ask the model about every edit of a session whose answer is not known since the weights changed, and keep in
    `session.said` what it answers now.
    """
    asked: dict[str, list[tuple[int, Edit]]] = {"raw": [], "chat": []}
    for one in session.applied:
        form = form_of(one.editor, session.loaded.tokenizer)
        every = zip(one.numbers, one.edits, strict=True)
        asked[form] += [(n, e) for n, e in every if n not in session.said or session.said[n].now is None]
    for form in ("raw", "chat"):
        edits = [edit for _, edit in asked[form]]
        answers = answers_to(session.respondent, edits, form)
        for (number, edit), answer in zip(asked[form], answers, strict=True):
            before = session.said[number].before if number in session.said else ""
            right = matches(answer, [edit.answer], prompt=edit.question)
            session.said[number] = Said(before, answer, right)
