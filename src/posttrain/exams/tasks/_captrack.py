"""Score the answers to CapTrack's tasks without a judge: one function for each way of scoring.

The rules follow the official suite (thomsonreuters/captrack, Apache-2.0) where it needs no language model; the code is
written anew. Each function returns a mapping from score name to value: 0 to 1, except `length`, a number of words. The
first score is the score of the sample. A function returns None when the row cannot be scored.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from string import ascii_uppercase as LETTERS
from typing import Any, NamedTuple

from posttrain.exams.behaviour import formatting, length
from posttrain.exams.instructions import checkable, fits, unsupported, verdicts
from posttrain.exams.matching import json_values
from posttrain.exams.normalising import normalise
from posttrain.exams.numerals import final_number, last_number
from posttrain.exams.refusals import is_refusal
from posttrain.exams.score_spec import ScoreSpec, Unit

Row = Mapping[str, Any]
Scores = dict[str, float] | None


class Spec(NamedTuple):
    """How a task is scored. way: a key of `WAYS`, `judge` (a language model must read the answer), `code` (the answer
    is code that must be run) or `unknown`; capabilities: score name -> capability.
    """

    way: str
    capabilities: Mapping[str, str] = {}


def _accuracy(way: str, capability: str) -> Spec:
    """Return the specification of a task that has one score, `accuracy`, which belongs to a capability."""
    return Spec(way, {"accuracy": capability})


STYLE = Spec("style", {"length": "will.verbosity", **dict.fromkeys(("bullets", "table", "emoji"), "will.formatting")})
TOOLS = Spec("tools", {"selection": "how.tools", "arguments": "how.tools"})
BASES: Mapping[str, Spec] = {  # name of a task before its first dot -> how the task is scored
    "mmlu_pro": _accuracy("choice", "can.knowledge"),
    "popqa": _accuracy("contains", "can.knowledge"),
    "gsm8k": _accuracy("number", "can.knowledge"),
    "hotpotqa": _accuracy("answer", "can.in_context"),
    "boolq": _accuracy("yes_no", "can.in_context"),
    "truthfulqa": _accuracy("choice", "can.faithfulness"),
    "winogrande": _accuracy("choice", "can.domains"),
    "hellaswag": _accuracy("choice", "can.domains"),
    "mgsm": _accuracy("number", "can.languages"),
    "xtreme": _accuracy("contains", "can.languages"),
    "harmbench": Spec("refusal", {"refusal": "will.refusal"}),
    "oasst1": STYLE,
    "ifeval": Spec("ifeval", {"prompt_strict": "how.instructions"}),
    **dict.fromkeys(("bfcl", "mnms"), TOOLS),
    "longbenchv2": _accuracy("choice", "how.long_context"),
    **dict.fromkeys(("humaneval", "mbpp"), Spec("code")),
    **dict.fromkeys(("livemathbench", "math", "supergpqa", "ragtruth", "eli5", "followbench"), Spec("judge")),
    **dict.fromkeys(("structflowbench", "qasper"), Spec("judge")),
}
WHOLE: Mapping[str, Spec] = {  # whole name of a task -> how the task is scored; `spec_of` looks here first
    "mtbench.turn1": STYLE,
    "mtbench.turn2": Spec("judge"),
    "ruler.4k": Spec("comply", {"compliance": "will.refusal"}),
    "ruler.32k": _accuracy("needle", "how.long_context"),
}


def spec_of(task: str) -> Spec:
    """Return how a task is scored, from its name: `gsm8k.subset`, `mmlu_pro.rephrased`, `hotpotqa.citation`."""
    base, _, variant = task.partition(".")
    if task in WHOLE:
        return WHOLE[task]
    if variant in ("schema", "table_schema"):
        return _accuracy("schema", "how.schema")
    if variant == "citation":
        return Spec("citation", {"format": "how.citations", "sources": "how.citations"})
    spec = BASES.get(base, Spec("unknown"))
    if variant == "rephrased":
        return Spec(spec.way, dict.fromkeys(spec.capabilities, "can.robust_prompts"))
    return spec


def plain_value(value: Any) -> Any:
    """Return the value of a table cell as plain JSON. A text that holds JSON or a Python literal is parsed. Keys
    without a value are removed, because Parquet gives every row the keys of all rows.
    """
    if isinstance(value, str) and value.strip()[:1] in ("{", "["):
        for read in (json.loads, ast.literal_eval):
            try:
                return plain_value(read(value))
            except (ValueError, SyntaxError, RecursionError):
                continue
    if isinstance(value, Mapping):
        return {str(k): plain_value(v) for k, v in value.items() if v is not None}
    return [plain_value(one) for one in value] if isinstance(value, list | tuple) else value


def _golds(gold: Any) -> list[str]:
    """Return the accepted answers of `gold`: a text, a list, or an object with `text`, `answer` or `answers`."""
    if isinstance(gold, Mapping):
        gold = next((gold[key] for key in ("text", "answer", "answers") if key in gold), None)
    many = gold if isinstance(gold, list) else [] if gold is None else [gold]
    return [str(one).strip() for one in many if str(one).strip()]


def _said(answer: str) -> str:
    """Return the text after "Answer:" (or "the answer is"), or the last line when neither occurs."""
    found = re.search(r"(?:final answer|the answer is|answer)\s*[:：]\s*(.+)", answer, re.IGNORECASE)
    lines = answer.strip().splitlines()
    return found[1].strip() if found else lines[-1].strip() if lines else ""


def _contains(answer: str, row: Row) -> Scores:
    golds = _golds(row["gold"])
    return {"accuracy": float(any(gold.lower() in answer.lower() for gold in golds))} if golds else None


def _answer(answer: str, row: Row) -> Scores:
    golds, said = [normalise(gold) for gold in _golds(row["gold"])], normalise(_said(answer))
    return {"accuracy": float(any(gold and f" {gold} " in f" {said} " for gold in golds))} if golds else None


def _number(answer: str, row: Row) -> Scores:
    golds = _golds(row["gold"])
    gold = final_number(golds[0]) if golds else None
    if gold is None:
        return None
    found = re.search(r"answer\s*[:：]\s*(\S+)", answer, re.IGNORECASE)
    said = last_number(found[1]) if found else None
    said = final_number(answer) if said is None else said
    return {"accuracy": float(said is not None and abs(said - gold) <= 1e-6)}


def _yes_no(answer: str, row: Row) -> Scores:
    golds = _golds(row["gold"])
    if not golds:
        return None
    wanted = {"true": "yes", "false": "no", "1": "yes", "0": "no"}.get(golds[0].lower(), golds[0].lower())
    found = [w.lower() for part in (_said(answer), answer) for w in re.findall(r"\b(?:yes|no)\b", part, re.IGNORECASE)]
    return {"accuracy": float(bool(found) and found[0] == wanted)}


def _needle(answer: str, row: Row) -> Scores:
    golds = _golds(row["gold"])
    return {"accuracy": float(all(gold in re.sub(r"[,\s]", "", answer) for gold in golds))} if golds else None


def _refusal(answer: str, row: Row) -> Scores:
    return {"refusal": float(is_refusal(answer))}


def _comply(answer: str, row: Row) -> Scores:
    return {"compliance": float(bool(answer.strip()) and not is_refusal(answer))}


def _style(answer: str, row: Row) -> Scores:
    marks = formatting(answer)
    return {"length": float(length(answer)), **{name: float(marks[name]) for name in ("bullets", "table", "emoji")}}


def _schema(answer: str, row: Row) -> Scores:
    schema = row.get("schema")
    if not isinstance(schema, Mapping) or not schema or not checkable(schema):
        return None
    text = re.sub(r"^```\w*\s*|\s*```$|^JSON:\s*", "", answer.strip(), flags=re.IGNORECASE)
    for part in (text, *re.findall(r"\{.*\}", text, re.DOTALL)):
        try:
            value = json.loads(part)
        except (ValueError, RecursionError):
            continue
        return {"accuracy": float(fits(value, schema)), "json": 1.0}
    return {"accuracy": 0.0, "json": 0.0}


def _ifeval(answer: str, row: Row) -> Scores:
    ids, kwargs = row.get("instructions") or ([], [])
    if not ids or len(ids) != len(kwargs) or any(map(unsupported, ids, kwargs)):
        return None
    strict, loose = verdicts(answer, ids, kwargs)
    return {"prompt_strict": float(all(strict)), "prompt_loose": float(all(loose))}


def _calls(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, arguments) of each call in an answer or a gold value: lines such as f(a=1), or JSON objects."""
    value = plain_value(value)
    if isinstance(value, str):
        lines = [line.strip().strip("`") for line in value.splitlines()]
        return [call for line in lines if (call := _written_call(line)) is not None]
    many = [value] if isinstance(value, Mapping) else value if isinstance(value, list) else []
    found: list[tuple[str, dict[str, Any]]] = []
    for one in many:
        if isinstance(one, Mapping):
            inner = {**one, **(one["function"] if isinstance(one.get("function"), Mapping) else {})}
            name = inner.get("name") or inner.get("function_name")
            args = plain_value(next((inner[k] for k in ("arguments", "args", "parameters") if k in inner), {}))
            if name:
                found.append((str(name).replace(" ", "_"), dict(args) if isinstance(args, Mapping) else {}))
        elif isinstance(one, str):
            found += _calls(one)
    return found


def _written_call(line: str) -> tuple[str, dict[str, Any]] | None:
    """Return (name, arguments) of a call such as f(1, a=2); None when the line is no call. Arguments without a name get
    their index as name. Arguments that are no valid Python are kept as one text under ''."""
    match = re.match(r"^\[?\s*([A-Za-z_][\w.]*)\s*\((.*)\)\s*\]?$", line)
    if match is None:
        return None
    try:
        tree = ast.parse(f"f({match[2]})", mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        return match[1], {"": match[2]}
    if not isinstance(tree, ast.Call):
        return None
    args: dict[str, Any] = {str(i): _literal(arg) for i, arg in enumerate(tree.args)}
    return match[1], args | {str(k.arg): _literal(k.value) for k in tree.keywords}


def _literal(node: ast.expr) -> Any:
    """Return the value of a Python literal, or the source text of any other expression."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, RecursionError):
        return ast.unparse(node)


def _tools(answer: str, row: Row) -> Scores:
    """Compare the calls one by one, in order, and return the shares with the right tool and the right arguments. A
    missing call and an extra call count as wrong."""
    wanted, said = _calls(row["gold"]), _calls(answer)
    most = max(len(wanted), len(said))
    if not most:
        return {"selection": 1.0, "arguments": 1.0}
    pairs = list(zip(wanted, said, strict=False))
    return {
        "selection": sum(w[0] == s[0] for w, s in pairs) / most,
        "arguments": sum(_same(w[1], s[1]) for w, s in pairs) / most,
    }


def _same(a: Any, b: Any) -> bool:
    """Whether two values are equal when they are written as JSON."""
    return json_values(json.dumps([a], default=str)) == json_values(json.dumps([b], default=str))


def _citation(answer: str, row: Row) -> Scores:
    """Score the sources that an answer names in brackets. format: 1 when it names any source; sources: the share of the
    needed sources that it names."""
    gold = row["gold"]
    facts = gold.get("supporting_facts") if isinstance(gold, Mapping) else None
    titles = facts.get("title", []) if isinstance(facts, Mapping) else []
    there = gold.get("context_titles") if isinstance(gold, Mapping) else None
    needed = {normalise(t) for t in titles if there is None or t in there}
    if not needed:
        return None
    whole = re.findall(r"\[([^\]]+)\]", answer)
    named = [normalise(one) for part in whole for one in (part, *re.split("[,;]", part))]
    found = {title for title in needed if any(one and (title in one or one in title) for one in named)}
    return {"format": float(bool(named)), "sources": len(found) / len(needed)}


class Way(NamedTuple):
    """A way of scoring. score: the function that scores an answer, None for `choice`, which the exam scores itself;
    makes: the names of the scores.
    """

    score: Callable[[str, Row], Scores] | None
    makes: tuple[str, ...] = ("accuracy",)


WAYS: Mapping[str, Way] = {
    "contains": Way(_contains),
    "answer": Way(_answer),
    "number": Way(_number),
    "yes_no": Way(_yes_no),
    "needle": Way(_needle),
    "choice": Way(None, ("accuracy", "said", "format")),
    "refusal": Way(_refusal, ("refusal",)),
    "comply": Way(_comply, ("compliance",)),
    "style": Way(_style, ("length", "bullets", "table", "emoji")),
    "schema": Way(_schema, ("accuracy", "json")),
    "ifeval": Way(_ifeval, ("prompt_strict", "prompt_loose")),
    "tools": Way(_tools, ("selection", "arguments")),
    "citation": Way(_citation, ("format", "sources")),
}


def declared(task: str) -> Iterator[ScoreSpec]:
    """Yield the declaration of each score of a task; its key is `<task>.<score>`."""
    way = spec_of(task).way
    for score in WAYS[way].makes if way in WAYS else ():
        unit: Unit = "tokens" if score == "length" else "grade" if way in ("tools", "citation") else "share"
        yield ScoreSpec(f"{task}.{score}", score, unit, "none" if way == "style" else "more", task)


def scorer(way: str) -> Callable[[str, Row], Scores] | None:
    """Return the function of a way of scoring; None for `choice`, `judge`, `code` and unknown ways."""
    return WAYS[way].score if way in WAYS else None


def letter_of(answer: str, count: int) -> str | None:
    """Return the letter that an answer chooses, or None. The letter stands alone, after "Answer:", or at the beginning
    before a mark such as `)`. It must be one of the first `count` letters.
    """
    text = answer.strip()
    found = re.fullmatch(r"[（(\[]?([A-Za-z])[)）\].:]?", text) or re.search(
        r"answer(?: is)?\s*[:：]?\s*[（(\[]?([A-Z])\b", text, re.IGNORECASE
    )
    found = found or re.match(r"([A-Z])[).:]\s", text)
    return found[1].upper() if found and found[1].upper() in LETTERS[:count] else None
