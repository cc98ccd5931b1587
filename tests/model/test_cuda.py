"""On a GPU: first light's families in float32, in a crowd that is shaken, give what each query gives alone."""

from __future__ import annotations

import random

import pytest
import torch

from baton.model.ahead import RowsAhead
from baton.policy.baton import Baton
from baton.policy.orca import Orca
from baton.policy.port import Policy
from crowd import Shaken, alone, crowd_of, some_queries
from families import model_of

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral_window", "gemma3", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("policy", [Baton, Orca])
def test_a_shaken_crowd_gives_what_each_query_gives_alone(family: str, policy: type[Policy]) -> None:
    queries = some_queries(14, random.Random(3))
    model = model_of(family).to("cuda")
    expected = {query.id: alone(model, query)[0] for query in queries}
    dice = random.Random(1)
    crowd = crowd_of(model, Shaken(policy(), dice), ahead=True)
    assert isinstance(crowd.rows, RowsAhead), crowd.rows._forward.description
    crowd.run(queries, dice)
    assert {name: crowd.tokens(name) for name in expected} == expected
