"""Share code among the tuners built by PEFT: the kind of task, seeds, and errors that list the linear layers."""

from __future__ import annotations

import warnings

import torch
from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from transformers import PreTrainedModel

from posttrain.errors import ConfigError, Problem
from posttrain.models.fingerprint import remember_base
from posttrain.models.notes import HEADS, head_modules
from posttrain.tuners._parts import last_part, linear_names

TASKS = {"sequence": TaskType.SEQ_CLS, "token": TaskType.TOKEN_CLS, "answer": TaskType.QUESTION_ANS}


def task_type(model: PreTrainedModel) -> TaskType:
    """Return PEFT's name for the task of the model's head, from the name of the model's class."""
    name = type(model).__name__
    return next((TASKS[head] for head, (ending, _) in HEADS.items() if name.endswith(ending)), TaskType.CAUSAL_LM)


def put_in(model: PreTrainedModel, config: PeftConfig, *, seed: int, location: str = "tuner") -> PeftModel:
    """Put PEFT's layers into the model (in place), freeze the rest, and return the PEFT model.

    The global random state is left as it was. Raise ConfigError, which names the model's linear layers, when PEFT finds
    no module to adapt. location: the setting that the error names.
    """
    config.task_type = task_type(model)
    if new := list(head_modules(model)):  # PEFT knows most heads by name, but not a pooler that was random
        config.modules_to_save = sorted({*(config.modules_to_save or ()), *new})
    remember_base(model)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), warnings.catch_warnings():
        # GPT-2's Conv1D stores its matrix transposed; PEFT sets fan_in_fan_out itself and says so
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        # PEFT 0.21 asks transformers 5.23 for an attribute under its former name
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        # a matrix that embeddings and output head share is copied when the adapter is merged (models/merge_adapter.py)
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*")
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            names = ", ".join(sorted({last_part(name) for name in linear_names(model)}))
            raise ConfigError(Problem(location, str(error).split("\n")[0], f"linear layers here: {names}")) from error


def refuse_looking_back(model: PreTrainedModel, kind: str) -> None:
    """Raise ConfigError if virtual tokens would make a decoder's classification head read the wrong position. Such a
    head reads the last token that is not padding, and transformers cannot detect padding in embeddings.
    """
    if task_type(model) == TaskType.SEQ_CLS and not _looks_ahead(model):
        cause = f"{kind} gives a decoder embeddings, in which {type(model).__name__} cannot see where a row ends"
        raise ConfigError(Problem("tuner", cause, "use prefix_tuning, ptuning_v2 or lora, or an encoder"))


@torch.no_grad()
def _looks_ahead(model: PreTrainedModel) -> bool:
    """Return whether the first token's hidden state depends on later tokens, as in an encoder, by a forward pass."""
    was_training = model.training
    model.eval()
    ids = torch.tensor([[1, 2, 3], [1, 2, 4]], device=model.device)
    states = model.base_model(input_ids=ids).last_hidden_state  # (2, 3, H)
    model.train(was_training)
    return not torch.allclose(states[0, 0], states[1, 0])
