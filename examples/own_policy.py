"""A policy of one's own: the shortest prompt first, the rest as baton does it. See docs/policies.md."""

from baton import LLM, SamplingParams
from baton.policy.baton import prefill_chunks
from baton.policy.port import Plan, View


class ShortestFirst:
    """Pure: from a frozen view of the engine to a frozen plan of its next iteration."""

    def plan(self, view: View) -> Plan:
        free = view.rows - len(view.running)
        shortest = sorted(view.waiting, key=lambda query: query.prompt_tokens)
        # One is made ready ahead of the row that will be free.
        places = min(free + 1 - len(view.ready) - len(view.prefilling), view.prefill_room)
        begin = view.admitted(shortest, places)
        chunks, _ = prefill_chunks(view, [*view.prefilling, *begin])
        ready = [query.id for query in view.ready][:free]
        return Plan(prefill=tuple(chunks), insert=tuple(ready), fused=True, why="the shortest prompt first")


with LLM(policy=ShortestFirst(), max_batch_size=1) as llm:
    prompts = ["Tell me a story about a fox and a lamp, and make it a long one.", 'Spell "lamp".', "What is 17 + 25?"]
    for out in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=60)):
        first = out.outputs[0].usage.first_token_seconds
        print(f"{len(out.prompt_token_ids):3} prompt tokens, first token after {1000 * first:4.0f} ms: {out.prompt}")
