"""Two answers stream at once from one engine; leaving an iterator early cancels its query and frees its row."""

import asyncio

from baton import AsyncLLM, SamplingParams


async def tell(engine: AsyncLLM, name: str, question: str, most: int) -> None:
    prompt = {"prompt_token_ids": engine.client.tokenizer.chat([{"role": "user", "content": question}])}
    async for out in engine.generate(prompt, SamplingParams(temperature=0, max_tokens=200)):
        print(f"{name}: {len(out.outputs[0].token_ids):3} tokens")
        if len(out.outputs[0].token_ids) >= most:
            print(f"{name}: heard enough")
            break


async def main() -> None:
    engine = AsyncLLM()
    await asyncio.gather(
        tell(engine, "fox", "Tell me a story about a fox and a lamp.", most=200),
        tell(engine, "owl", "Tell me a story about an owl and a drum.", most=20),
    )
    print(engine.stats()["queries"])
    engine.close()


asyncio.run(main())
