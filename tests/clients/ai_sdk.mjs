// The AI SDK against $SCRIPTED_URL: openai()'s default (Responses), openai.chat(), openai-compatible and anthropic().
import assert from "node:assert/strict";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = `${process.env.SCRIPTED_URL}/v1`, name = process.env.MODEL, apiKey = "none";
const openai = createOpenAI({ baseURL, apiKey });
const models = {
  responses: openai(name),
  chat: openai.chat(name),
  compatible: createOpenAICompatible({ name: "baton", baseURL, apiKey })(name),
  messages: createAnthropic({ baseURL, apiKey })(name),
};
const said = "Hello from the script.";

for (const [kind, model] of Object.entries(models)) {
  const plain = await generateText({ model, prompt: "hi", maxRetries: 0 });
  assert.equal(plain.text, said, kind);
  assert.ok(plain.usage.outputTokens > 0, kind);
  const called = [];
  const get_weather = tool({
    description: "The weather of a city.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => (called.push(city), "sun"),
  });
  const asked = { model, prompt: "How is the weather?", tools: { get_weather }, stopWhen: stepCountIs(3), maxRetries: 0 };
  const result = await generateText(asked);
  assert.equal(result.text, said, kind);
  assert.deepEqual(called, ["Rome"], kind);
  const stream = streamText({ ...asked, onError: ({ error }) => { throw error; } });
  let text = "";
  for await (const piece of stream.textStream) text += piece;
  assert.equal(text, said, kind);
  console.log(`${kind}: plain, tools, streams`);
}
console.log(`ai-sdk ${Object.keys(models).join(", ")}: plain, tools, streams`);
