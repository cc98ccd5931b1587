// What the server tells of the last minutes: asked for as it goes on, and kept.
import { get } from "/stream.js";

const ASK_MS = 500, LATER_MS = 3000;
const ONE = new URLSearchParams(location.search).get("model"); // of a server with several

/** A number from 0 up for each query, the same wherever it is seen: ids end in one. */
function number(query) {
  const match = /(\d+)$/.exec(query);
  if (match) return Number(match[1]);
  return [...query].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) % 100003, 7);
}

export class News {
  /** `heard(error)`: after each answer, null if it was good. `replica`: the engine, of a server with several. */
  constructor(heard, replica = "") {
    this.heard = heard;
    this.replica = replica;
    this.timer = 0;
    this.asking = 0;
    this.forget();
  }

  forget() {
    this.last = null;
    this.stays = new Map();
    this.buckets = [];
    this.cpu = [];
    this.at = 0;
  }

  /** The engine's time now, in seconds. */
  get time() { return this.last ? this.last.now + (performance.now() - this.at) / 1000 : 0; }

  start() {
    this.stop();
    this.ask(++this.asking);
  }

  stop() {
    this.asking++;
    clearTimeout(this.timer);
  }

  async ask(mine) {
    let wait = ASK_MS;
    try {
      const { serial = 0, run } = this.last ?? {}, time = this.buckets.at(-1)?.at ?? 0;
      const whose = Object.entries({ model: ONE, replica: this.replica }).filter(([, name]) => name);
      const data = await get(`/live/data?${new URLSearchParams({ serial, time, ...Object.fromEntries(whose) })}`);
      if (mine !== this.asking) return;
      if (run && data.run !== run) { // another start of the server, whose serials are others
        this.forget();
        wait = 0;
      } else {
        this.take(data);
        this.heard(null);
      }
    } catch (error) {
      if (mine !== this.asking) return;
      this.forget();
      this.heard(error);
      wait = LATER_MS;
    }
    this.timer = setTimeout(() => this.ask(mine), wait);
  }

  take(data) {
    this.last = data;
    this.at = performance.now();
    for (const row of data.stays) {
      const stay = Object.fromEntries(data.stay_fields.map((name, at) => [name, row[at]]));
      stay.number = number(stay.query);
      this.stays.set(`${stay.kind} ${stay.began} ${stay.query}`, stay);
    }
    const { at, ...facts } = data.buckets;
    while (at.length && this.buckets.length && this.buckets.at(-1).at >= at[0]) this.buckets.pop();
    at.forEach((time, place) => {
      const bucket = { at: time };
      for (const name in facts) bucket[name] = facts[name][place];
      this.buckets.push(bucket);
    });
    this.cpu.push({ at: data.now, cores: data.process.cpu_cores });
    const gone = data.now - data.window_seconds;
    for (const [name, stay] of this.stays) if (stay.ended !== null && stay.ended < gone) this.stays.delete(name);
    while (this.buckets.length && this.buckets[0].at < gone) this.buckets.shift();
    while (this.cpu[0].at < gone) this.cpu.shift();
  }
}
