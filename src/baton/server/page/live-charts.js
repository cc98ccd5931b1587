// Small charts of the last minutes, each with the number it has now.
import { BUCKET, fitted } from "/live-batch.js";

const HEIGHT = 56, SMOOTH = 4;
const KINDS = { empty_row: "second", finished_row: "accent", padding: "third", recomputed: "fourth" };
const LATER_SECONDS = 12; // between two answers' latencies a line goes on for so long

const whole = (value) => Math.round(value).toLocaleString("en");
const percent = (share) => `${(100 * share).toFixed(share && share < 0.0995 ? 1 : 0)} %`;
export const seconds = (value) => value == null ? "–" : value < 0.0995 ? `${(1000 * value).toFixed(value < 0.00995 ? 1 : 0)} ms` : `${value.toFixed(value < 9.95 ? 2 : 1)} s`;
const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(bytes < 100 * 2 ** 20 ? 1 : 0)} MiB`;

/** Each: its title, what it says now, its lines over the slots of time, and what its height is at least. */
export const CARDS = [
  {
    title: "Tokens per second",
    about: "Filled: generated. Line: tokens of prompts.",
    told: ({ figures }) => [whole(figures.tokens_per_second), `and ${whole(figures.prompt_tokens_per_second)} of prompts`],
    lines: (slots) => [
      { colour: "second", values: rate(slots, "prefilled") },
      { colour: "accent", area: true, values: rate(slots, "generated") },
    ],
    unit: whole,
  },
  {
    title: "Time to first token",
    about: "From a query's arrival; waiting is part of it. Half of the answers were sooner than the lower line, 19 of 20 than the upper.",
    told: ({ figures: { first_token: percentiles } }) => [seconds(percentiles.p50), `1 of 20 over ${seconds(percentiles.p95)}`],
    lines: (slots) => [
      { colour: "second", values: latest(slots, "first_p95") },
      { colour: "accent", values: latest(slots, "first_p50") },
    ],
    unit: seconds,
  },
  {
    title: "Between tokens",
    about: "Seconds from one token of an answer to the next: half were sooner than the lower line, 19 of 20 than the upper.",
    told: ({ figures: { inter_token: percentiles } }) => [seconds(percentiles.p50), `1 of 20 over ${seconds(percentiles.p95)}`],
    lines: (slots) => [
      { colour: "second", values: latest(slots, "gap_p95") },
      { colour: "accent", values: latest(slots, "gap_p50") },
    ],
    rare: 0.05,
    unit: seconds,
  },
  {
    title: "Idle computation",
    about: "The share of computed token slots that no query needed: empty rows, rows whose query is done, padding, and tokens computed again.",
    told: ({ figures }) => [percent(figures.idle_ratio), worst(figures.slots)],
    lines: (slots) => stacked(slots),
    least: 0.1,
    most: 1,
    unit: percent,
  },
  {
    title: "Rows",
    about: "Filled: rows with a query at work. Line: rows of the batch.",
    told: ({ engine, max_rows: most }) => [`${engine.running} of ${engine.rows}`, `at most ${most}, ${engine.columns} columns`],
    lines: (slots, { max_rows: most }) => [
      { colour: "edge", values: lasting(slots, "rows") },
      { colour: "accent", area: true, values: lasting(slots, "occupied", "held") },
      { least: most },
    ],
    unit: whole,
  },
  {
    title: "Queue",
    about: "Queries that wait for their prompt to be begun. Marks: a query was preempted, or refused because the queue was full.",
    told: ({ engine }) => [`${engine.waiting} wait`, `${engine.prefilling} begun, ${engine.preempted} swapped out`],
    lines: (slots) => [
      { colour: "accent", area: true, values: lasting(slots, "waiting") },
      { colour: "bad", marks: slots.map((slot) => slot && (slot.preempted || slot.rejected)) },
    ],
    least: 4,
    unit: whole,
  },
  {
    title: "Memory of keys and values",
    about: "What the rows take of their budget. Aside: what is kept of preempted queries and shared prefixes.",
    told: ({ engine }) => [percent(engine.kv_bytes_used / (engine.kv_bytes_budget || 1)), `of ${mib(engine.kv_bytes_budget)}, ${mib(engine.swap_bytes_used + engine.prefix_bytes_used)} aside`],
    lines: (slots) => [{ colour: "accent", area: true, values: share(slots) }],
    least: 1,
    most: 1,
    unit: percent,
  },
  {
    title: "Processor",
    about: "Strong: cores that this process keeps busy. Faint: the share of the time in which the engine computes.",
    told: ({ process, figures }) => [`${process.cpu_cores.toFixed(1)} cores`, `of ${process.cores}, engine busy ${percent(figures.busy)}`],
    lines: (slots, last, cpu) => [
      { colour: "edge", values: rate(slots, "busy") },
      { colour: "accent", values: sampled(slots, cpu.map(({ at, cores }) => ({ at, value: cores / last.process.cores }))) },
    ],
    least: 1,
    most: 1,
    unit: percent,
  },
];

function rate(slots, name) {
  return slots.map((_, at) => {
    let sum = 0;
    for (let back = 0; back < SMOOTH; back++) sum += slots[at - back]?.[name] ?? 0;
    return sum / (SMOOTH * BUCKET);
  });
}

/** As it was when last told, less another fact. */
function lasting(slots, name, less) {
  let now = null;
  return slots.map((slot) => (now = slot ? slot[name] - (less ? slot[less] : 0) : now));
}

function latest(slots, name) {
  let now = null, since = 0;
  return slots.map((slot, at) => {
    if (slot && slot[name] != null) { now = slot[name]; since = at; }
    return at - since > LATER_SECONDS / BUCKET ? null : now;
  });
}

function share(slots) {
  let now = null;
  return slots.map((slot) => (now = slot?.kv_budget_kib ? slot.kv_kib / slot.kv_budget_kib : now));
}

function sampled(slots, samples) {
  let at = 0, now = null;
  return slots.map((slot, place) => {
    const time = slots.from + place * BUCKET;
    while (at < samples.length && samples[at].at <= time) now = samples[at++].value;
    return now;
  });
}

/** Shares of what is computed, one upon another. */
function stacked(slots) {
  const all = rate(slots, "useful").map((useful, at) => useful + Object.keys(KINDS).reduce((sum, kind) => sum + sums[kind](slots)[at], 0));
  let below = slots.map(() => 0);
  const areas = [];
  for (const [kind, colour] of Object.entries(KINDS)) {
    const values = sums[kind](slots).map((value, at) => below[at] + (all[at] ? value / all[at] : 0));
    areas.unshift({ colour, area: true, solid: true, values });
    below = values;
  }
  return areas;
}

const sums = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, (slots) => rate(slots, kind)]));

function worst(slots) {
  const kinds = Object.keys(KINDS).filter((kind) => slots[kind] > 0).sort((a, b) => slots[b] - slots[a]);
  return kinds.length ? `most of it ${kinds[0].replace("_", " ")}` : "of all that is computed";
}

/** 1, 2 or 5 of the next power of ten, so that a chart's height seldom changes. */
function round(value) {
  const ten = 10 ** Math.floor(Math.log10(value));
  return ten * ([1, 2, 5].find((step) => step * ten >= value * 0.999) ?? 10);
}

export class Chart {
  constructor(card, place) {
    this.card = card;
    this.node = document.createElement("section");
    this.node.className = "card";
    this.node.title = card.about;
    const title = document.createElement("h3"), line = document.createElement("p");
    title.textContent = card.title;
    this.big = document.createElement("b");
    this.small = document.createElement("span");
    line.append(this.big, this.small);
    this.canvas = document.createElement("canvas");
    this.canvas.setAttribute("aria-hidden", "true");
    this.node.append(title, line, this.canvas);
    place.append(this.node);
  }

  tell(last) {
    const [big, small] = last ? this.card.told(last) : ["–", ""];
    if (this.big.textContent !== big) this.big.textContent = big;
    if (this.small.textContent !== small) this.small.textContent = this.small.title = small;
  }

  draw(slots, news, paint) {
    const [pen, width] = fitted(this.canvas, HEIGHT), lines = this.card.lines(slots, news.last, news.cpu);
    const skipped = slots.skipped; // slots before the picture, for the first means
    let high = this.card.least ?? 0;
    for (const line of lines) {
      high = Math.max(high, line.least ?? 0);
      const values = (line.values?.slice(skipped) ?? []).filter((value) => value != null).sort((a, b) => a - b);
      // A single late answer must not make all others invisible.
      high = Math.max(high, values[Math.ceil(values.length * (this.card.rare ? 1 - this.card.rare : 1)) - 1] ?? 0);
    }
    high = Math.min(this.card.most ?? Infinity, high > 0 ? round(high) : 1);
    const bottom = HEIGHT - 2, x = (at) => (at - skipped - slots.shift) * width / slots.shown, y = (value) => bottom - Math.min(1.1, value / high) * (bottom - 8);
    pen.strokeStyle = paint.line;
    pen.beginPath();
    for (const level of [bottom + 0.5, 8.5]) { pen.moveTo(0, level); pen.lineTo(width, level); }
    pen.stroke();
    for (const line of lines) {
      if (line.marks) this.mark(pen, line, x, paint, skipped);
      else if (line.values) this.line(pen, line, x, y, bottom, paint, skipped);
    }
    const text = this.card.unit(high);
    pen.font = "9.5px system-ui, sans-serif";
    pen.fillStyle = paint.card;
    pen.fillRect(0, 0, pen.measureText(text).width + 5, 12);
    pen.fillStyle = paint.soft;
    pen.fillText(text, 0, 10);
  }

  line(pen, { values, colour, area, solid }, x, y, bottom, paint, skipped) {
    pen.strokeStyle = pen.fillStyle = paint[colour];
    pen.lineWidth = 1.5;
    pen.lineJoin = "round";
    let begun = null;
    const end = (at) => {
      if (begun === null) return;
      if (!solid) pen.stroke();
      if (area) {
        pen.lineTo(x(at), bottom);
        pen.lineTo(x(begun), bottom);
        pen.globalAlpha = solid ? 0.6 : 0.14;
        pen.fill();
        pen.globalAlpha = 1;
      }
      begun = null;
    };
    for (let at = skipped; at < values.length; at++) {
      if (values[at] == null) { end(at - 1); continue; }
      if (begun === null) { pen.beginPath(); pen.moveTo(x(at), y(values[at])); begun = at; }
      else pen.lineTo(x(at), y(values[at]));
    }
    end(values.length - 1);
  }

  mark(pen, { marks, colour }, x, paint, skipped) {
    pen.fillStyle = paint[colour];
    for (let at = skipped; at < marks.length; at++) if (marks[at]) pen.fillRect(x(at), 9, 2, 6);
  }
}

/** Buckets by their place in time, from `from` to `to` and a second before; null where nothing happened. */
export function slotsOf(buckets, from, to) {
  const first = Math.floor(from / BUCKET) - SMOOTH, slots = new Array(Math.ceil(to / BUCKET) - first).fill(null);
  for (const bucket of buckets) {
    const at = Math.round(bucket.at / BUCKET) - first;
    if (at >= 0 && at < slots.length) slots[at] = bucket;
  }
  return Object.assign(slots, { from: first * BUCKET, skipped: SMOOTH, shift: from / BUCKET - first - SMOOTH, shown: (to - from) / BUCKET });
}
