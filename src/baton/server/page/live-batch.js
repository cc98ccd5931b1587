// The running batch drawn as what it is: a rectangle of rows, over the last minutes; prompts in lanes above it.

export const BUCKET = 0.25;
const GUTTER = 26, AXIS = 18, APART = 8, LANE = 13, MOST_LANES = 6;
const EMPTY = 1, HELD = 2;

/** The colours of the page as they are now, for canvases. */
export function colours(canvas) {
  const probe = document.createElement("i"), palette = {};
  canvas.parentNode.append(probe);
  for (const name of ["paper", "card", "ink", "soft", "line", "bad", "accent", "empty", "hatch", "edge", "second", "third", "fourth"]) {
    probe.style.color = `var(--${name})`;
    palette[name] = getComputedStyle(probe).color;
  }
  palette.dark = getComputedStyle(probe).colorScheme.includes("dark") && isDark(palette.card);
  probe.remove();
  return palette;
}

const isDark = (colour) => colour.match(/[\d.]+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0) < 380;

/** Makes a canvas as large as it is shown, and its context count in CSS pixels. */
export function fitted(canvas, height) {
  const ratio = Math.min(devicePixelRatio, 2), width = canvas.clientWidth;
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) {
    canvas.width = w;
    canvas.height = h;
    canvas.style.height = `${height}px`;
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  return [pen, width];
}

// Lightness, chroma and hue: clay, apricot, ochre, olive, sage, jade, teal, mist, slate, lavender, plum and rose.
const TONES = [
  [0.73, 0.105, 40], [0.84, 0.07, 68], [0.8, 0.09, 90], [0.76, 0.07, 118], [0.83, 0.055, 148], [0.73, 0.07, 172],
  [0.68, 0.07, 208], [0.84, 0.04, 228], [0.71, 0.065, 255], [0.8, 0.055, 295], [0.67, 0.075, 330], [0.8, 0.07, 12],
];

/** A query's colour: that of its neighbours in number is another. */
function tone(number, deep, dark) {
  const [light, chroma, hue] = TONES[number * 5 % TONES.length], other = Math.floor(number / TONES.length) % 2 * 0.035;
  return `oklch(${light - other - (deep ? 0.17 : 0) - (dark ? 0.1 : 0)} ${chroma + (deep ? 0.015 : 0)} ${hue})`;
}

function hatch(pen, colour) {
  const tile = document.createElement("canvas"), size = 12;
  tile.width = tile.height = size;
  const own = tile.getContext("2d");
  own.strokeStyle = colour;
  own.lineWidth = 1.6;
  for (const shift of [-size, -size / 2, 0, size / 2, size]) {
    own.moveTo(shift, size);
    own.lineTo(shift + size, 0);
  }
  own.stroke();
  const pattern = pen.createPattern(tile, "repeat");
  pattern.setTransform(new DOMMatrix().scale(0.5));
  return pattern;
}

export class Batch {
  constructor(canvas) {
    this.canvas = canvas;
    this.lanes = 1;
    this.rows = 1;
    this.picked = null; // a stay whose query stands out
  }

  /** What has happened between two times. */
  draw(news, from, to, paint) {
    this.paint = paint;
    const narrow = this.canvas.clientWidth < 600, { max_rows: most } = news.last;
    this.stays = [...news.stays.values()].filter((stay) => stay.began < to && (stay.ended ?? to) > from);
    for (const { kind, lane } of this.stays) {
      if (kind === "run") this.rows = Math.max(this.rows, lane + 1);
      else this.lanes = Math.max(this.lanes, Math.min(lane + 1, MOST_LANES));
    }
    this.rows = Math.max(this.rows, most);
    this.row = Math.max(4, Math.min(narrow ? 22 : 30, Math.floor((narrow ? 300 : 380) / this.rows)));
    this.top = this.lanes * LANE + APART;
    const height = this.top + this.rows * this.row + AXIS;
    [this.pen, this.width] = fitted(this.canvas, height);
    this.from = from;
    this.to = to;
    this.scale = (this.width - GUTTER) / (to - from);
    const buckets = news.buckets.filter((bucket) => bucket.at > from - 2 * BUCKET && bucket.at < to);
    const waste = hatch(this.pen, paint.hatch);
    this.drawRest();
    this.drawEmpty(buckets, waste);
    this.drawUnknown(news.last.complete_from);
    for (const stay of this.stays) this.drawStay(stay);
    this.drawPadding(buckets, waste);
    this.drawSizes(buckets);
    for (const stay of this.stays) this.drawMarks(stay);
    this.drawLabels(height);
  }

  x(time) { return GUTTER + Math.max(0, Math.min(time, this.to) - this.from) * this.scale; }

  y(stay) { return stay.kind === "run" ? this.top + stay.lane * this.row : Math.min(stay.lane, MOST_LANES - 1) * LANE; }

  /** Where a row would be. */
  drawRest() {
    const { pen } = this;
    pen.fillStyle = this.paint.line;
    for (let row = 0; row < this.rows; row++) pen.fillRect(GUTTER, this.top + (row + 0.5) * this.row, this.width - GUTTER, 1);
  }

  /** Rows that have no query, by what the batch had of them: those whose query is done are still computed. */
  drawEmpty(buckets, waste) {
    const { pen, rows } = this, taken = buckets.map(() => new Uint8Array(rows));
    const first = buckets[0]?.at ?? 0, ends = Array.from({ length: rows }, () => []);
    for (const { kind, lane, began, ended } of this.stays) {
      if (kind !== "run") continue;
      ends[lane].push(ended ?? Infinity);
      buckets.forEach((bucket, at) => {
        if (bucket.at + BUCKET > began && bucket.at < (ended ?? Infinity)) taken[at][lane] = 1;
      });
    }
    const open = new Array(rows).fill(null);
    const close = (lane, until) => {
      const cell = open[lane];
      if (!cell) return;
      const box = [this.x(cell.since), this.top + lane * this.row + 1, this.x(until) - this.x(cell.since), this.row - 2];
      pen.fillStyle = this.paint.empty;
      pen.fillRect(...box);
      if (cell.kind === HELD || cell.computed) {
        pen.fillStyle = waste;
        pen.fillRect(...box);
      }
      open[lane] = null;
    };
    buckets.forEach((bucket, at) => {
      const free = [];
      for (let lane = 0; lane < rows; lane++) if (!taken[at][lane]) free.push(lane);
      const kinds = new Uint8Array(rows);
      const left = (lane) => Math.max(-1, ...ends[lane].filter((end) => end <= bucket.at + BUCKET));
      if (bucket.held) [...free].sort((a, b) => left(b) - left(a)).slice(0, bucket.held).forEach((lane) => { kinds[lane] = HELD; });
      let empty = bucket.rows - bucket.occupied;
      for (const lane of free) if (!kinds[lane] && empty-- > 0) kinds[lane] = EMPTY;
      const since = Math.max(bucket.at, first), computed = bucket.empty_row > 0;
      for (let lane = 0; lane < rows; lane++) {
        // Queries come and go inside of a bucket and are drawn over this.
        if (open[lane] && (open[lane].kind !== kinds[lane] || open[lane].computed !== computed)) close(lane, since + BUCKET * taken[at][lane]);
        if (kinds[lane] && !open[lane]) open[lane] = { kind: kinds[lane], computed, since: since - BUCKET * (taken[at - 1]?.[lane] ?? 0) };
      }
    });
    for (let lane = 0; lane < rows; lane++) close(lane, this.to);
  }

  /** Before that time more happened than the server keeps. */
  drawUnknown(until) {
    if (until <= this.from) return;
    const { pen } = this;
    pen.fillStyle = this.paint.card;
    pen.fillRect(0, 0, this.x(until), this.top + this.rows * this.row);
    pen.fillStyle = this.paint.soft;
    pen.font = "11px system-ui, sans-serif";
    if (this.x(until) > 180) pen.fillText("no longer kept: too much happened", GUTTER + 6, this.top + 16);
  }

  drawStay(stay) {
    const { pen, paint } = this, run = stay.kind === "run";
    const x = this.x(stay.began), width = Math.max(1, this.x(stay.ended ?? this.to) - x - (stay.ended === null ? 0 : 1));
    const y = this.y(stay) + 1, height = (run ? this.row : LANE) - 2;
    pen.globalAlpha = this.picked && this.picked.query !== stay.query ? 0.42 : 1;
    pen.fillStyle = tone(stay.number, !run, paint.dark);
    pen.beginPath();
    pen.roundRect(x, y, width, height, Math.min(3, width / 2));
    pen.fill();
    if (run && stay.filled > stay.began) {
      pen.fillStyle = tone(stay.number, true, paint.dark);
      pen.beginPath();
      pen.roundRect(x, y, Math.min(width, Math.max(1, this.x(stay.filled) - x)), height, Math.min(3, width / 2));
      pen.fill();
    }
    const text = run ? String(stay.generated) : "";
    if (text && height >= 14 && width > 12 + 8 * text.length) {
      pen.fillStyle = paint.dark ? "rgb(0 0 0 / .72)" : "rgb(0 0 0 / .6)";
      pen.font = "11px system-ui, sans-serif";
      pen.textAlign = "right";
      pen.fillText(text, x + width - 6, y + height / 2 + 4);
      pen.textAlign = "left";
    }
    pen.globalAlpha = 1;
  }

  /** How a query left a row, and which one is looked at. */
  drawMarks(stay) {
    const { pen, paint } = this, run = stay.kind === "run", y = this.y(stay) + 1, height = (run ? this.row : LANE) - 2;
    if (run && stay.began >= this.from && (stay.ended ?? this.to) - stay.began > 3 / this.scale) {
      pen.fillStyle = tone(stay.number, true, paint.dark);
      pen.fillRect(this.x(stay.began), y, 2, height); // inserted
    }
    if (stay.ended !== null && stay.ended <= this.to && !["finished", "running"].includes(stay.how) && (run || stay.how !== "ready")) {
      const cancelled = stay.how === "cancelled";
      pen.fillStyle = cancelled ? paint.soft : paint.bad;
      pen.fillRect(this.x(stay.ended) - 3, y, 3, height);
    }
    if (this.picked?.query === stay.query) {
      const x = this.x(stay.began);
      pen.strokeStyle = paint.ink;
      pen.lineWidth = 1.5;
      pen.beginPath();
      pen.roundRect(x, y, Math.max(2, this.x(stay.ended ?? this.to) - x), height, 3);
      pen.stroke();
    }
  }

  /** The share of what was computed that only aligned rows. */
  drawPadding(buckets, waste) {
    const { pen } = this;
    pen.fillStyle = waste;
    for (const bucket of buckets) {
      if (!bucket.padding) continue;
      const all = bucket.useful + bucket.padding + bucket.empty_row + bucket.finished_row + bucket.recomputed;
      const height = (this.row - 2) * bucket.padding / all, x = this.x(bucket.at), width = this.x(bucket.at + BUCKET) - x;
      for (const { kind, lane, began, ended } of this.stays) {
        if (kind !== "run" || began > bucket.at + BUCKET || (ended ?? Infinity) < bucket.at) continue;
        pen.fillRect(x, this.top + (lane + 1) * this.row - 1 - height, width, height);
      }
    }
  }

  /** The lower edge of the rectangle: how many rows it has. */
  drawSizes(buckets) {
    const { pen } = this;
    pen.strokeStyle = this.paint.edge;
    pen.lineWidth = 1.5;
    pen.beginPath();
    let before = null;
    for (const { at, rows } of buckets) {
      const x = this.x(at), y = this.top + rows * this.row;
      if (before === null) pen.moveTo(x, y);
      else if (before !== y) { pen.lineTo(x, before); pen.lineTo(x, y); }
      before = y;
    }
    if (before !== null) pen.lineTo(this.x(this.to), before);
    pen.stroke();
  }

  drawLabels(height) {
    const { pen, paint } = this, step = Math.max(1, Math.ceil(14 / this.row));
    pen.fillStyle = paint.soft;
    pen.font = "10.5px system-ui, sans-serif";
    pen.textAlign = "right";
    for (let row = 0; row < this.rows; row += step) pen.fillText(row + 1, GUTTER - 8, this.top + row * this.row + Math.min(this.row / 2 + 4, this.row));
    const seconds = this.to - this.from, every = seconds > 90 ? 20 : seconds > 40 ? 10 : 5;
    pen.textAlign = "center";
    for (let ago = every; ago < seconds - 1; ago += every) pen.fillText(`−${ago} s`, this.x(this.to - ago), height - 4);
    pen.textAlign = "right";
    pen.fillText("now", this.width, height - 4);
    pen.textAlign = "left";
  }

  /** The stay at a place of the canvas. */
  find(x, y) {
    if (!this.stays) return null;
    const time = this.from + (x - GUTTER) / this.scale, near = 3 / this.scale;
    const here = this.stays.filter((stay) => y >= this.y(stay) && y < this.y(stay) + (stay.kind === "run" ? this.row : LANE));
    const far = (stay) => Math.max(stay.began - time, time - (stay.ended ?? this.to), 0);
    here.sort((a, b) => far(a) - far(b));
    return here.length && far(here[0]) <= near ? here[0] : null;
  }

  /** The stay next to the picked one: by lanes, or by time in its lane. */
  next(key) {
    const rows = this.stays.filter((stay) => stay.kind === "run"), now = this.picked;
    if (!rows.length) return null;
    if (!now) return rows.reduce((a, b) => (b.began > a.began ? b : a));
    const middle = (now.began + (now.ended ?? this.to)) / 2, way = key === "ArrowUp" || key === "ArrowLeft" ? -1 : 1;
    const along = key === "ArrowLeft" || key === "ArrowRight";
    const some = rows.filter((stay) => along
      ? stay.lane === now.lane && Math.sign(stay.began - now.began) === way
      : Math.sign(stay.lane - now.lane) === way);
    const far = (stay) => along ? Math.abs(stay.began - now.began)
      : Math.abs(stay.lane - now.lane) * 1e6 + Math.max(stay.began - middle, middle - (stay.ended ?? this.to), 0);
    return some.length ? some.reduce((a, b) => (far(b) < far(a) ? b : a)) : now;
  }
}
