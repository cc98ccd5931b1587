"""A large offline batch with Ray Data. Killed and started again, it goes on where it was.

pip install 'baton-llm[cluster]' 'ray[data]'
python examples/ray_data.py questions.jsonl answers.parquet
"""

import os
import sys
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, SaveMode
from ray.data.checkpoint import CheckpointConfig

from baton import LLM, SamplingParams


class Answers:
    """One engine; lines of the batch are its queries."""

    def __init__(self) -> None:
        self.llm = LLM(max_batch_size=8)

    def __call__(self, lines: dict[str, Any]) -> dict[str, Any]:
        # The same seed gives the same answer, however often a line is computed.
        params = [SamplingParams(temperature=0.7, max_tokens=60, seed=int(number)) for number in lines["id"]]
        outputs = self.llm.generate([str(prompt) for prompt in lines["prompt"]], params)
        return {**lines, "answer": [output.outputs[0].text for output in outputs]}


source, target = sys.argv[1:]
# Reading, looking up what is done, and the engine each hold a place: with fewer they would wait for one another.
ray.init(num_cpus=max(4, os.cpu_count() or 1), include_dashboard=False, log_to_driver=False)
# Which lines are done is written down beside the answers, block by block.
done = CheckpointConfig("id", f"{target}.done", delete_checkpoint_on_success=False)
DataContext.get_current().checkpoint_config = done
# Read by pyarrow: with `lines=True` pandas would read, whose blocks the look-up does not take.
lines = ray.data.read_json(source).repartition(target_num_rows_per_block=8)
answers = lines.map_batches(Answers, batch_size=8, compute=ActorPoolStrategy(size=1), num_cpus=1)
answers.write_parquet(target, mode=SaveMode.APPEND)
