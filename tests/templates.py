"""Chat templates that behave as those of real models do where it matters, and a tokenizer with the tokens of each.

They are written anew and short; what each keeps, drops, refuses and prints is what the model's own template does.
`shipped()` reads the templates of the models themselves, as TRL (a test oracle) carries them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.chat import IGNORED, Encoded
from posttrain.data.template import ChatTemplate
from tests.pico import SENTENCES

_CALL = '{%- set call = call.function or call %}{{- \'<tool_call>\n{"name": "\' + call.name + \'", "arguments": \' }}'
_TOOLS = "{%- if tools %}{{- '<|im_start|>system\n' + tools | tojson + '<|im_end|>\n' }}{%- endif %}"
_RESPONSE = "{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
_ASK = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"

QWEN25 = (
    _TOOLS + "{%- for m in messages %}"
    "{%- if m.role in ('user', 'system') or (m.role == 'assistant' and not m.tool_calls) %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{%- elif m.role == 'assistant' %}{{- '<|im_start|>assistant' }}"
    "{%- if m.content %}{{- '\n' + m.content }}{%- endif %}"
    "{%- for call in m.tool_calls %}{{- '\n' }}" + _CALL + "{{- call.arguments | tojson }}{{- '}\n</tool_call>' }}"
    "{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif m.role == 'tool' %}" + _RESPONSE + "{%- endif %}{%- endfor %}" + _ASK
)
"""Arguments by `tojson`; no place for reasoning, names and developers."""

QWEN3 = (
    _TOOLS + "{%- set ns = namespace(last=-1) %}"
    "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}"
    "{%- if m.role in ('user', 'system') %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{%- elif m.role == 'assistant' %}"
    "{%- set thought = m.reasoning_content if m.reasoning_content is string else '' %}{{- '<|im_start|>assistant\n' }}"
    "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{%- endif %}{{- m.content }}"
    "{%- for call in m.tool_calls or [] %}{%- if m.content or not loop.first %}{{- '\n' }}{%- endif %}"
    + _CALL
    + "{%- if call.arguments is string %}{{- call.arguments }}{%- else %}{{- call.arguments | tojson }}{%- endif %}"
    "{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
    "{%- elif m.role == 'tool' %}" + _RESPONSE + "{%- endif %}{%- endfor %}" + _ASK
)
"""Reasoning is kept after the last question only; the last turn has an empty one where it has none."""

LLAMA32 = (
    "{{- bos_token }}{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}{{- '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + date_string + '\n\n' }}"
    "{%- for t in tools or [] %}{{- t | tojson }}{%- endfor %}{{- '<|eot_id|>' }}"
    "{%- for m in messages %}{%- if m.role == 'tool' %}"
    "{{- '<|start_header_id|>ipython<|end_header_id|>\n\n' + m.content | tojson + '<|eot_id|>' }}"
    "{%- elif 'tool_calls' in m %}{%- if not m.tool_calls | length == 1 %}"
    "{{- raise_exception('This model only supports single tool-calls at once!') }}{%- endif %}"
    "{%- set call = m.tool_calls[0].function %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    "{{- '{\"name\": \"' + call.name + '\", \"parameters\": ' }}{{- call.arguments | tojson }}{{- '}<|eot_id|>' }}"
    "{%- else %}{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)
"""Today's date; what is said beside a call is dropped."""

GPT_OSS = (
    "{%- macro head() %}{{- '<|start|>system<|message|>Current date: ' + strftime_now('%Y-%m-%d') + '<|end|>' }}"
    "{%- endmacro %}{{- head() }}{%- for t in tools or [] %}{{- '<|start|>developer<|message|>// ' }}"
    "{{- t.function.description + '\ntype ' + t.function.name + ' = (_: {' }}"
    "{%- for name, spec in (t.function.parameters.properties or {}).items() %}"
    "{{- '\n// ' + (spec.description or '') + '\n' + name }}"
    "{{- '' if name in (t.function.parameters.required or []) else '?' }}"
    "{{- ': ' + (spec.enum | join(' | ') if spec.enum and spec.type == 'string' else (spec['items'] or spec).type ~ spec.type) + ',' }}{%- endfor %}"
    "{{- '}) => any;<|end|>' }}{%- endfor %}{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{%- if 'tool_calls' in m %}{%- set call = m.tool_calls[0].function or m.tool_calls[0] %}"
    "{%- if m.thinking %}{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{%- endif %}"
    "{{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}"
    "{{- call.arguments | tojson }}{{- '<|call|>' }}"
    "{%- elif loop.last and not add_generation_prompt %}"
    "{%- if m.thinking %}{{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{%- endif %}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}"
    "{%- else %}{{- '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{%- endif %}"
    "{%- elif m.role == 'tool' %}{{- '<|start|>functions to=assistant<|message|>' + m.content | tojson + '<|end|>' }}"
    "{%- elif m.role == 'user' or loop.first %}{{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}"
    "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)
"""One call in each turn; reasoning of the last turn and of calls only; the date within a macro; of tools' parameters
descriptions, types and `enum` only."""

MISTRAL = (
    "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- if tools and loop.first %}{{- '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{%- endif %}"
    "{{- '[INST]' + m.content + '[/INST]' }}{%- elif m.role == 'tool' %}"
    "{{- '[TOOL_RESULTS]{\"content\": ' + m.content | tojson + ', \"call_id\": \"' + m.tool_call_id + '\"}' }}"
    "{{- '[/TOOL_RESULTS]' }}{%- elif m.tool_calls %}{{- '[TOOL_CALLS][' }}{%- for call in m.tool_calls %}"
    "{%- if call.id is not defined or call.id | length != 9 %}"
    "{{- raise_exception('Tool call IDs should be alphanumeric strings with length 9!') }}{%- endif %}"
    "{{- (call.function | tojson)[:-1] + ', \"id\": \"' + call.id + '\"}' }}{%- if not loop.last %}{{- ', ' }}"
    "{%- endif %}{%- endfor %}{{- ']' + eos_token }}{%- else %}{{- m.content + eos_token }}{%- endif %}{%- endfor %}"
)
"""No generation prompt; ids of calls are printed and must have nine letters and digits."""

DEEPSEEK = (
    "{{- bos_token }}{%- for m in messages %}{%- if m.role == 'user' %}{{- '<｜User｜>' + m.content }}"
    "{%- elif m.role == 'assistant' %}{{- '<｜Assistant｜>' + m.content }}{%- for call in m.tool_calls or [] %}"
    "{{- '<｜tool▁call▁begin｜>' + call.function.name + '\n```json\n' + call.function.arguments + '\n```' }}"
    "{{- '<｜tool▁call▁end｜>' }}{%- endfor %}{{- '<｜end▁of▁sentence｜>' }}"
    "{%- elif m.role == 'tool' %}{{- '<｜tool▁output▁begin｜>' + m.content + '<｜tool▁output▁end｜>' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<｜Assistant｜>' }}{%- endif %}"
)
"""Arguments as JSON text only: an object is refused."""

PRINTING = DEEPSEEK.replace("'\n```json\n' + call.function.arguments", "'\n```json\n' ~ call.function.arguments")
"""Prints arguments as they are: of an object what Python prints."""

_SPECIAL = re.compile(r"<\|[a-z_]+\|>|<｜[^<>｜]+｜>|\[/?[A-Z_]{4,}\]|<(?:start|end)_of_turn>|\[gMASK\]|<sop>")


@lru_cache(maxsize=32)
def tokenizer_of(template: str) -> Any:
    """A byte-level BPE whose special tokens are those that a template writes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    specials = ["<|pad|>", "<|bos|>", "<|endoftext|>"]
    specials += sorted(set(_SPECIAL.findall(template)) - set(specials))
    raw.train_from_iterator(
        SENTENCES * 4,
        trainers.BpeTrainer(
            vocab_size=384,
            special_tokens=[AddedToken(token, special=True, normalized=False) for token in specials],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|endoftext|>"
    )
    made.chat_template = template
    return made


def shipped(name: str) -> str:
    """A model's own template, from TRL's package, which is not imported."""
    spec = find_spec("trl")
    assert spec is not None, "TRL comes with the development tools"
    assert spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def learned(row: Encoded, tok: Any) -> list[str]:
    """The texts that a row teaches, each run by itself."""
    runs: list[list[int]] = [[]]
    for label in row.labels:
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tok.decode(run) for run in runs if run]


def renderings(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Says how often templates were rendered since it was last asked."""
    times: list[None] = []
    run = ChatTemplate._run

    def counting(self: ChatTemplate, *arguments: Any, **more: Any) -> Any:
        times.append(None)
        return run(self, *arguments, **more)

    def since() -> int:
        count = len(times)
        times.clear()
        return count

    monkeypatch.setattr(ChatTemplate, "_run", counting)
    return since
