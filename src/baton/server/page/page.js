"use strict";

const $ = (id) => document.getElementById(id);
const log = $("log"), main = document.querySelector("main"), question = $("question"), send = $("send");
const KEY = "baton-key";

let turns = [];        // the conversation as the server is sent it
let running = null;    // the AbortController of the answer that is coming
let before = null;     // the last /load, from which rates are drawn

$("key").value = sessionStorage.getItem(KEY) ?? "";

function headers() {
  const key = $("key").value.trim();
  return key ? { authorization: `Bearer ${key}` } : {};
}

// ---- errors in plain words

const WORDS = {
  invalid_api_key: "This server needs its API key: enter it under Settings.",
  queue_full: "The server has too many questions waiting. Try again in a moment.",
  context_length_exceeded: "This conversation no longer fits what the model can read. Start a new chat, or ask for fewer tokens.",
  shutting_down: "The server is shutting down.",
  engine_unhealthy: "The engine takes no questions now. Try again in a moment.",
  internal_error: "The server failed on this question; its log says why.",
};

class Refusal extends Error {}

function refusal(body, status) {
  const error = body?.error ?? {};
  return Object.assign(new Refusal(WORDS[error.code] ?? error.message ?? `The server answered ${status}.`), { code: error.code });
}

function inWords(error) {
  if (error instanceof Refusal) return error.message;
  return error instanceof TypeError ? "The server cannot be reached." : `Something went wrong: ${error.message}`;
}

// ---- the conversation on the page

function element(tag, name, text = "") {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = text;
  return made;
}

function nearEnd() { return main.scrollHeight - main.scrollTop - main.clientHeight < 80; }
function toEnd() { main.scrollTop = main.scrollHeight; }

function addQuestion(text) {
  $("welcome").hidden = true;
  log.append(element("div", "turn user", text));
}

function addAnswer() {
  const turn = element("div", "turn assistant busy"), text = element("div", "text");
  turn.append(text);
  log.append(turn);
  toEnd();
  return { turn, text };
}

function addFacts(turn, seen, usage) {
  const made = usage?.completion_tokens ?? seen.pieces;
  const seconds = (seen.last - seen.first) / 1000;
  const facts = [`${made} tokens`];
  if (made > 1 && seconds > 0) facts.push(`${((made - 1) / seconds).toFixed(0)} tokens/s`);
  if (seen.first) facts.push(`first after ${Math.round(seen.first - seen.asked)} ms`);
  if (usage?.baton) facts.push(`${(100 * usage.baton.idle_ratio).toFixed(1)} % idle`);
  if (seen.reason === "length") facts.push("cut at the token limit");
  if (seen.reason === "stopped") facts.push("stopped");
  turn.append(element("div", "facts", facts.join(" · ")));
}

function addError(turn, error, text) {
  if (error.code === "invalid_api_key") { $("settings").open = true; $("key").focus(); }
  const box = element("div", "wrong", inWords(error)), again = element("button", "again", "Try again");
  again.type = "button";
  again.onclick = () => { if (!running) { turn.previousElementSibling?.remove(); turn.remove(); ask(text); } };
  box.append(again);
  turn.append(box);
}

// ---- asking

function request() {
  const asked = { messages: turns, stream: true, baton_usage: true, temperature: Number($("temperature").value) };
  if ($("tokens").value) asked.max_tokens = Number($("tokens").value);
  if ($("seed").value) asked.seed = Number($("seed").value);
  return asked;
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
  }
}

async function receive(signal, text, seen) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST", signal,
    headers: { "content-type": "application/json", ...headers() },
    body: JSON.stringify(request()),
  });
  if (!response.ok) throw refusal(await response.json().catch(() => null), response.status);
  let usage = null;
  for await (const data of events(response)) {
    if (data === "[DONE]") return usage;
    const chunk = JSON.parse(data);
    if (chunk.error) throw refusal(chunk, 500);
    usage = chunk.usage ?? usage;
    const choice = chunk.choices[0];
    seen.reason = choice?.finish_reason ?? seen.reason;
    if (!choice?.delta.content) continue;
    seen.last = performance.now();
    seen.first ||= seen.last;
    seen.pieces += 1;
    const follow = nearEnd();
    text.append(choice.delta.content);
    if (follow) toEnd();
  }
  throw new TypeError("the stream ended early");
}

async function ask(text) {
  running = new AbortController();
  send.textContent = "Stop";
  send.classList.add("stop");
  turns.push({ role: "user", content: text });
  addQuestion(text);
  const mine = turns, answer = addAnswer();
  const seen = { asked: performance.now(), first: 0, last: 0, pieces: 0, reason: "" };
  try {
    const usage = await receive(running.signal, answer.text, seen);
    addFacts(answer.turn, seen, usage);
  } catch (error) {
    if (error.name === "AbortError") { seen.reason = "stopped"; addFacts(answer.turn, seen, null); }
    else addError(answer.turn, error, text);
    if (!answer.text.textContent) answer.text.hidden = true;
  }
  // A question without an answer is not part of what the model is shown next.
  if (answer.text.textContent) mine.push({ role: "assistant", content: answer.text.textContent });
  else mine.pop();
  answer.turn.classList.remove("busy");
  send.textContent = "Send";
  send.classList.remove("stop");
  running = null;
  toEnd();
}

function submit() {
  const text = question.value.trim();
  if (running || !text) return;
  question.value = "";
  fit();
  ask(text);
}

function fit() {
  question.style.height = "auto";
  question.style.height = `${question.scrollHeight}px`;
}

$("composer").onsubmit = (event) => {
  event.preventDefault();
  if (running) running.abort(); else submit();
};
question.oninput = fit;
question.onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); submit(); }
};
document.onkeydown = (event) => { if (event.key === "Escape") running?.abort(); };
$("examples").onclick = (event) => {
  if (event.target.tagName === "BUTTON" && !running) { ask(event.target.textContent); question.focus(); }
};
$("fresh").onclick = () => {
  running?.abort();
  turns = [];
  log.replaceChildren();
  $("welcome").hidden = false;
  question.focus();
};
$("temperature").oninput = () => { $("warmth").value = Number($("temperature").value).toFixed(1); };
$("key").onchange = () => { sessionStorage.setItem(KEY, $("key").value.trim()); showModel(); };

// ---- what the engine does

async function told(path) {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw refusal(await response.json().catch(() => null), response.status);
  return response.json();
}

async function showModel() {
  try {
    $("model").textContent = $("model").title = (await told("/v1/models")).data[0].id;
  } catch (error) {
    $("model").textContent = inWords(error);
  }
}

function showRows(now) {
  const rows = $("rows"), shown = Math.min(now.rows, 16), on = Math.ceil(shown * now.rows_occupied / (now.rows || 1));
  while (rows.children.length > shown) rows.lastChild.remove();
  while (rows.children.length < shown) rows.append(document.createElement("i"));
  [...rows.children].forEach((pip, at) => pip.classList.toggle("on", at < on));
  $("occupied").textContent = `${now.rows_occupied}/${now.rows}`;
}

function showRates(now) {
  if (before && now.generated_tokens >= before.generated_tokens) {
    const useful = now.useful_slots - before.useful_slots, idle = now.idle_slots - before.idle_slots;
    $("speed").textContent = ((now.generated_tokens - before.generated_tokens) / ((now.at - before.at) / 1000)).toFixed(0);
    $("idle").textContent = useful + idle ? `${(100 * idle / (useful + idle)).toFixed(1)} %` : "–";
  }
  before = now;
}

async function watch() {
  if (!document.hidden) {
    try {
      const now = { ...await told("/load"), at: performance.now() };
      showRows(now);
      showRates(now);
    } catch {
      for (const id of ["occupied", "speed", "idle"]) $(id).textContent = "–";
      before = null;
    }
  }
  setTimeout(watch, 1000);
}

showModel();
watch();
