"""Many prompts through one running batch, and how much of what was computed nobody needed."""

from baton import LLM, SamplingParams

QUESTIONS = ["What is 4821 + 377?", "Sort these numbers: 42, 17, 99, 23.", 'Spell "lantern".', "What can you do?"]

with LLM(max_batch_size=4) as llm:
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    for question, out in zip(
        QUESTIONS, llm.chat(conversations, SamplingParams(temperature=0, max_tokens=300)), strict=True
    ):
        print(f"> {question}\n{out.outputs[0].text}\n")
    stats = llm.stats()

print(f"{stats['generated_tokens']} tokens generated, {stats['idle_ratio']:.1%} of the computed token slots idle")
