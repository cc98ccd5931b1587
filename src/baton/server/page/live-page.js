// The live page: asks, draws some times a second while it is seen, and holds still when asked to.
import { Batch, colours } from "/live-batch.js";
import { CARDS, Chart, seconds, slotsOf } from "/live-charts.js";
import { News } from "/live-news.js";
import { inWords, saveKey } from "/stream.js";

const $ = (id) => document.getElementById(id);
const BEHIND = 0.9; // seconds: what is drawn has been told already, so that nothing jumps
const DRAW_MS = matchMedia("(prefers-reduced-motion: reduce)").matches ? 500 : 125, CHARTS_MS = 500, SENTENCE_MS = 2500;
const WAYS = { ready: "swapped out, with what was computed", waiting: "forgotten, to be computed again", finished: "finished", cancelled: "cancelled", failed: "failed", expired: "ran out of time" };

const canvas = $("rectangle"), batch = new Batch(canvas), news = new News(heard, new URLSearchParams(location.search).get("replica") ?? "");
const others = new Map(); // of a server with several engines: what the other ones tell, and their rectangles, by name
const charts = CARDS.map((card) => new Chart(card, $("cards")));
let held = null; // the time at which the picture was paused
let paint = null, timer = 0, drawnCharts = 0, shown = Number(localStorage.getItem("baton-live-seconds")) || 60;
let verdict = { limit: "", since: 0, next: "" };

// ---- what is heard

function heard(error) {
  $("notice").hidden = !error;
  $("keyed").hidden = error?.code !== "invalid_api_key";
  if (error) {
    const missing = error.code === "not_found" ? "This server keeps no live view." : inWords(error);
    $("notice").textContent = error.code === "invalid_api_key" ? "This server needs its API key." : missing;
    $("sentence").textContent = "…";
    $("change").textContent = "";
    verdict = { limit: "", since: 0, next: "" };
    for (const chart of charts) chart.tell(null);
    return;
  }
  const { model, settings, diagnosis } = news.last;
  if ($("model").textContent !== model) {
    $("model").textContent = $("model").title = model;
    $("about").textContent = `policy ${settings.policy ?? "?"}, ${settings.dtype ?? ""} on ${settings.device ?? "?"} ·`;
  }
  meet(news.last);
  judge(diagnosis);
  for (const chart of charts) chart.tell(news.last);
  if ($("rows-now").open) table();
}

/** One rectangle for each engine: the first is the one whose figures are shown, and the others lead to theirs. */
function meet({ replica = "", replicas = [], prefill = [] }) {
  const called = (name) => `Engine ${name}${prefill.includes(name) ? ", for prompts" : ""}`;
  if (replica) {
    news.replica = replica;
    $("batch").querySelector("h3").textContent = called(replica);
  }
  const there = replicas.filter((name) => name !== replica);
  for (const [name, { figure, told }] of others) {
    if (there.includes(name)) continue;
    told.stop();
    figure.remove();
    others.delete(name);
  }
  for (const name of there) {
    if (others.has(name)) continue;
    const figure = document.createElement("figure"), link = document.createElement("a"), place = document.createElement("canvas");
    link.href = `/live?replica=${encodeURIComponent(name)}`;
    link.textContent = called(name);
    place.setAttribute("role", "img");
    figure.append(link, place);
    $("others").append(figure);
    const told = new News(() => { if (told.last?.replica !== name) told.forget(); }, name);
    others.set(name, { figure, told, picture: new Batch(place), place });
    if (held === null) told.start();
  }
}

/** Another bottleneck is told when it is the same twice running, and new numbers of the same one now and then. */
function judge({ limit, sentence, change }) {
  const now = performance.now(), same = limit === verdict.limit;
  if (same ? now - verdict.since < SENTENCE_MS : verdict.limit && verdict.next !== limit) {
    verdict.next = limit;
    return;
  }
  if (!same) $("said").textContent = sentence;
  verdict = { limit, since: now, next: limit };
  if ($("sentence").textContent !== sentence) $("sentence").textContent = sentence;
  const words = change.split(/(--[a-z-]+(?: \d+)?)/).filter(Boolean).map((word) => {
    const node = document.createElement(word.startsWith("--") ? "code" : "span");
    node.textContent = word;
    return node;
  });
  $("change").replaceChildren(...(words.length ? ["What would help: ", ...words] : []));
}

// ---- drawing

function draw() {
  const to = held ?? news.time - BEHIND;
  if (!news.last || !canvas.clientWidth) return;
  paint ??= colours(canvas);
  batch.draw(news, to - shown, to, paint);
  for (const { told, picture, place } of others.values()) {
    if (!told.last || !place.clientWidth) continue;
    const theirs = told.time - (news.time - to);
    picture.draw(told, theirs - shown, theirs, paint);
    place.setAttribute("aria-label", `${told.last.engine.running} of ${told.last.engine.rows} rows at work`);
  }
  const now = performance.now();
  if (now - drawnCharts < CHARTS_MS) return;
  drawnCharts = now;
  const slots = slotsOf(news.buckets, to - shown, to);
  for (const chart of charts) chart.draw(slots, news, paint);
  const { engine, figures } = news.last;
  canvas.setAttribute("aria-label", `The running batch: ${engine.running} of ${engine.rows} rows at work, ${engine.waiting} queries wait, ${Math.round(figures.tokens_per_second)} tokens a second`);
}

function again() {
  drawnCharts = 0;
  paint = null;
  draw();
}

/** Starts or ends asking and drawing, by whether anyone looks and nothing is held. */
function run() {
  clearInterval(timer);
  const going = held === null && !document.hidden;
  for (const { told } of others.values()) going ? told.start() : told.stop();
  if (going) {
    news.start();
    timer = setInterval(draw, DRAW_MS);
  } else {
    news.stop();
  }
}

function pause() {
  held = held === null && news.last ? news.time - BEHIND : null;
  $("pause").setAttribute("aria-pressed", String(held !== null));
  $("pause").textContent = held === null ? "Pause" : "Go on";
  if (held === null) pick(null);
  run();
  again();
}

/** Whoever clicked with a mouse may press Space next, and means the picture. */
function free(event) {
  if (event.detail) event.currentTarget.blur();
}

$("pause").onclick = (event) => { free(event); pause(); };
$("theme").addEventListener("click", free);
document.onvisibilitychange = run;
document.addEventListener("keydown", (event) => {
  if (event.key !== " " || event.target.closest("button, input, summary, a")) return;
  event.preventDefault();
  pause();
});
addEventListener("resize", again);
matchMedia("(prefers-color-scheme: dark)").onchange = again;
new MutationObserver(again).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });

for (const button of $("windows").children) {
  button.onclick = (event) => {
    free(event);
    shown = Number(button.value);
    localStorage.setItem("baton-live-seconds", shown);
    choose();
    again();
  };
}

function choose() {
  for (const button of $("windows").children) button.setAttribute("aria-pressed", String(Number(button.value) === shown));
}

// ---- one query

function pick(stay, say = false) {
  batch.picked = stay;
  const tip = $("tip");
  tip.hidden = !stay;
  if (!stay) return;
  const { query, kind, lane, prompt, generated, tokens, began, ended, how } = stay, took = (ended ?? (held ?? news.time)) - began;
  const lines = kind === "run"
    ? [`prompt of ${prompt} tokens, ${generated} generated so far`, `${seconds(Math.max(0, took))} in row ${lane + 1}, ${ended === null ? "still running" : WAYS[how] ?? how}`]
    : [`${tokens} of ${prompt} prompt tokens computed here`, `${seconds(Math.max(0, took))} beside the batch${ended === null ? ", going on" : how === "ready" ? "" : `, ${WAYS[how] ?? how}`}`];
  const name = document.createElement("b");
  name.textContent = query;
  tip.replaceChildren(name, ...lines.flatMap((line, at) => at ? [document.createElement("br"), line] : [line]));
  const place = batch.x(Math.max(began, batch.from)), below = batch.y(stay) + batch.row + 6;
  tip.style.left = `${Math.max(0, Math.min(place, canvas.clientWidth - tip.offsetWidth))}px`;
  tip.style.top = `${below + tip.offsetHeight > canvas.clientHeight + 40 ? batch.y(stay) - tip.offsetHeight - 6 : below}px`;
  if (say) $("said").textContent = `${query}: ${lines.join("; ")}`;
}

function point(event) {
  const box = canvas.getBoundingClientRect();
  pick(batch.find(event.clientX - box.left, event.clientY - box.top));
  if (held !== null) draw();
}

canvas.onpointermove = point;
canvas.onpointerdown = point;
canvas.onpointerleave = (event) => { if (event.pointerType === "mouse") { pick(null); draw(); } };
canvas.onblur = () => { pick(null); draw(); };
canvas.onkeydown = (event) => {
  if (event.key === "Escape") pick(null);
  else if (event.key.startsWith("Arrow") && batch.stays) pick(batch.next(event.key), true);
  else return;
  event.preventDefault();
  draw();
};

// ---- the same as text

function table() {
  const now = held ?? news.time, rows = [...news.stays.values()].filter((stay) => stay.kind === "run" && stay.ended === null);
  rows.sort((a, b) => a.lane - b.lane);
  $("rows-now").querySelector("tbody").replaceChildren(...rows.map((stay) => {
    const row = document.createElement("tr");
    for (const text of [stay.lane + 1, stay.query, stay.prompt, stay.generated, (now - stay.began).toFixed(1)]) {
      row.append(Object.assign(document.createElement("td"), { textContent: text }));
    }
    return row;
  }));
}
$("rows-now").ontoggle = () => { if (news.last) table(); };

$("keyed").onsubmit = (event) => {
  event.preventDefault();
  saveKey($("key").value.trim());
  run();
};

choose();
run();
