"""A policy of one's own: the shortest prompt first, one prompt at a time."""

from baton import LLM, SamplingParams
from baton.policy.port import Chunk, Plan, View


class ShortestFirst:
    """Pure: from a frozen view of the engine to a frozen plan of its next iteration."""

    def plan(self, view: View) -> Plan:
        free = view.rows - len(view.running)
        ready = [query.id for query in view.ready][:free]
        room = view.prefill_room if len(view.ready) < view.rows else 0
        queue = sorted(view.fitting(view.waiting, room), key=lambda query: query.prompt_tokens)
        chunks = [Chunk(query.id, min(query.pending, 64)) for query in [*view.prefilling, *queue][:1]]
        return Plan(prefill=tuple(chunks), insert=tuple(ready), why="the shortest prompt first")


with LLM(policy=ShortestFirst(), max_batch_size=2) as llm:
    prompts = ["Tell me a story about a fox and a lamp, and make it a long one.", 'Spell "lamp".', "What is 17 + 25?"]
    for out in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=60)):
        first = out.outputs[0].usage.first_token_seconds
        print(f"{len(out.prompt_token_ids):3} prompt tokens, first token after {1000 * first:4.0f} ms: {out.prompt}")
