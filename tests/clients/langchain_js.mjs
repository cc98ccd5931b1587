// LangChain JS against $SCRIPTED_URL, over chat completions and with useResponsesApi: plain, streamed, a loop with a tool.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI } from "@langchain/openai";
import { z } from "zod";

const said = "Hello from the script.";
const get_weather = tool(async () => "sun", {
  name: "get_weather",
  description: "The weather of a city.",
  schema: z.object({ city: z.string() }),
});

for (const useResponsesApi of [false, true]) {
  const chat = new ChatOpenAI({
    model: process.env.MODEL,
    apiKey: "none",
    maxRetries: 0,
    useResponsesApi,
    configuration: { baseURL: `${process.env.SCRIPTED_URL}/v1` },
  });
  const plain = await chat.invoke("hi");
  assert.equal(plain.text, said);
  assert.ok(plain.usage_metadata.output_tokens > 0);
  let text = "";
  for await (const piece of await chat.stream("hi")) text += piece.text;
  assert.equal(text, said);

  const bound = chat.bindTools([get_weather]);
  const turns = [new HumanMessage("How is the weather?")];
  const calling = await bound.invoke(turns);
  assert.deepEqual(calling.tool_calls.map(({ name, args }) => [name, args]), [["get_weather", { city: "Rome" }]]);
  const answer = await get_weather.invoke(calling.tool_calls[0]);
  assert.ok(answer instanceof ToolMessage);
  assert.equal((await bound.invoke([...turns, calling, answer])).text, said);
  let streamed;
  for await (const piece of await bound.stream(turns)) streamed = streamed ? streamed.concat(piece) : piece;
  assert.deepEqual(streamed.tool_calls.map(({ args }) => args), [{ city: "Rome" }]);
  console.log(useResponsesApi ? "Responses" : "chat", "passed");
}
const { version } = JSON.parse(readFileSync(new URL("node_modules/@langchain/openai/package.json", import.meta.url)));
console.log(`@langchain/openai ${version} chat and Responses: plain, streams, a loop with a tool`);
