// openai for Node against $BASE_URL: plain, streams, raw responses, error classes, abort, tools, structured output.
import assert from "node:assert/strict";
import OpenAI from "openai";

const base = process.env.BASE_URL, model = process.env.MODEL;
const client = new OpenAI({ baseURL: `${base}/v1`, apiKey: "none", maxRetries: 0, timeout: 60_000 });
const messages = [{ role: "user", content: "What is 17 + 25?" }];
const parameters = {
  type: "object",
  properties: { city: { type: "string", maxLength: 12 } },
  required: ["city"],
  additionalProperties: false,
};
const tool = { type: "function", function: { name: "get_weather", parameters } };

const checks = {
  async plain() {
    const answer = await client.chat.completions.create({ model, messages, temperature: 0 });
    assert.match(answer.choices[0].message.content, /42/);
    assert.equal(answer.choices[0].finish_reason, "stop");
    assert.equal((await client.models.list()).data[0].id, model);
  },
  async stream() {
    const asked = { model, messages, temperature: 0 };
    const whole = (await client.chat.completions.create(asked)).choices[0].message.content;
    let text = "", usage = null;
    const stream = await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } });
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    assert.equal(text, whole);
    assert.ok(usage.completion_tokens > 0);
    const runner = client.chat.completions.stream(asked);
    assert.equal(await runner.finalContent(), whole);
  },
  async raw() {
    const { data, response } = await client.chat.completions.create({ model, messages, max_tokens: 1 }).withResponse();
    assert.ok(response.headers.get("x-request-id"));
    assert.equal(data.choices[0].finish_reason, "length");
  },
  async errors() {
    const cases = [
      [{ temperature: 3 }, OpenAI.BadRequestError, "invalid_value"],
      [{ nonsense: 1 }, OpenAI.BadRequestError, "unsupported_parameter"],
      [{ model: "gpt" }, OpenAI.NotFoundError, "model_not_found"],
      [{ max_tokens: 1_000_000 }, OpenAI.BadRequestError, "context_length_exceeded"],
    ];
    for (const [fields, kind, code] of cases) {
      const error = await client.chat.completions.create({ model, messages, ...fields }).catch((caught) => caught);
      assert.ok(error instanceof kind, `${error}`);
      assert.equal(error.code, code);
    }
  },
  async abort() {
    const stream = await client.completions.create({ model, prompt: "Once", max_tokens: 1000, stream: true, ignore_eos: true });
    for await (const _ of stream) break;
    stream.controller.abort();
    for (let turn = 0; turn < 100; turn++) {
      const load = await (await fetch(`${base}/load`)).json();
      if (load.running === 0) return;
      await new Promise((done) => setTimeout(done, 50));
    }
    assert.fail("the query still runs after its client went away");
  },
  async tools() {
    const asked = { model, messages, tools: [tool], tool_choice: "required", parallel_tool_calls: false, temperature: 0 };
    const { message, finish_reason } = (await client.chat.completions.create(asked)).choices[0];
    assert.equal(finish_reason, "tool_calls");
    assert.deepEqual(Object.keys(JSON.parse(message.tool_calls[0].function.arguments)), ["city"]);
    const final = await client.chat.completions.stream(asked).finalChatCompletion();
    assert.equal(final.choices[0].message.tool_calls[0].function.arguments, message.tool_calls[0].function.arguments);
  },
  async structured() {
    const schema = { type: "object", properties: { sum: { type: "integer", minimum: 0, maximum: 99 } }, required: ["sum"], additionalProperties: false };
    const response_format = { type: "json_schema", json_schema: { name: "sum", schema, strict: true } };
    const answer = await client.chat.completions.parse({ model, messages, response_format, temperature: 0, max_tokens: 200 });
    assert.equal(typeof answer.choices[0].message.parsed.sum, "number");
  },
};

for (const [name, check] of Object.entries(checks)) {
  await check();
  console.log("passed:", name);
}
console.log(`openai for Node: ${Object.keys(checks).length} checks`);
