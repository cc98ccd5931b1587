// Talking to the server: the key, answers as they come, and errors in plain words.

const KEY = "baton-key";
export const savedKey = () => sessionStorage.getItem(KEY) ?? "";
export const saveKey = (key) => sessionStorage.setItem(KEY, key);

const WORDS = {
  invalid_api_key: "This server needs its API key, and this is not it. Enter it under Settings.",
  context_length_exceeded: "This no longer fits what the model can read. Clear the conversation, or ask for fewer tokens.",
  request_timeout: "This took longer than the server allows. Try again, or ask for fewer tokens.",
  loading: "The model is still being loaded. Try again in a moment.",
  shutting_down: "The server is shutting down. Try again when it is back.",
  engine_unhealthy: "The engine takes no questions now. Try again in a moment.",
  internal_error: "The server failed on this question; its log says why. You can try again.",
};

/** What the server refused or failed at; the message is for people. */
export class Refusal extends Error {
  constructor({ code, message } = {}, status = 0, wait = "") {
    const full = `Too many questions are waiting. Try again ${wait ? `in ${wait} s` : "in a moment"}.`;
    super(code === "queue_full" ? full : WORDS[code] ?? (message ? `The server refused this: ${message}.` : `The server answered ${status}.`));
    this.code = code;
  }
}

export function inWords(error) {
  if (error instanceof Refusal) return error.message;
  return error instanceof TypeError ? "The server cannot be reached. Is it running? Then try again." : `Something went wrong: ${error.message}`;
}

async function fetched(path, options = {}) {
  const key = savedKey(), headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers });
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Refusal(body?.error, response.status, response.headers.get("retry-after"));
}

export const get = async (path) => (await fetched(path)).json();
export const post = (path, body, signal) => fetched(path, { method: "POST", body: JSON.stringify(body), signal });

async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r?\n/);
    rest = parts.pop();
    yield* parts;
  }
}

/** Yields `{text, thought, reason, usage}` of a streamed answer, of a chat or a completion. */
export async function* answer(path, body, signal) {
  for await (const line of lines(await post(path, body, signal))) {
    if (!line.startsWith("data:")) continue;
    const data = line.slice(5).trim();
    if (data === "[DONE]") return;
    const { error, choices, usage } = JSON.parse(data);
    if (error) throw new Refusal(error);
    const choice = choices[0];
    yield { text: choice?.delta?.content ?? choice?.text ?? "", thought: choice?.delta?.reasoning_content ?? "", reason: choice?.finish_reason, usage };
  }
  throw new Refusal({ code: "cut", message: "the connection ended in the middle of the answer" });
}
