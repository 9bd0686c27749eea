from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from posttrain.merging.methods.passthrough import PassthroughConfig
from tests.merging.oracle import mergekit
from tests.merging.tensors import drawn, merged


def test_a_model_as_it_is_or_multiplied() -> None:
    (a,) = drawn((7, 5), 1, base=False)
    assert torch.equal(merged(PassthroughConfig(), [a]), a)
    assert torch.equal(
        merged(PassthroughConfig(scale=0.3), [a]), mergekit("passthrough", [a], None, {"scale": [0.3]}, {})
    )
    by_name = PassthroughConfig(scale=[{"filter": "o_proj", "value": 0}])
    assert torch.equal(merged(by_name, [a]), a)
    assert not merged(by_name, [a], name="layers.3.o_proj.weight").any()


def test_bad_options() -> None:
    with pytest.raises(ValidationError):
        PassthroughConfig.model_validate({"scale": float("inf")})
