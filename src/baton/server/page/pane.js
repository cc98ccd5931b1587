// One conversation: its questions and answers, and the box to ask in.
import { answer, inWords } from "/stream.js";
import { button, element, show } from "/text.js";

const template = document.getElementById("pane");
const WHAT = [
  [/^waited/, "How long the question waited for a row of the running batch"],
  [/idle$/, "Idle: the share of token slots computed for this answer that no query needed"],
  [/^swapped.out/, "How often the answer gave its row to others and went on later"],
  [/^first/, "From the question to the first token"],
  [/thinking$/, "Tokens of what the model thought before it answered"],
  [/^context/, "How much of what the model can read at once the conversation takes"],
  [/tokens\/s$/, "How fast tokens came, from the first on"],
  [/tokens?$/, "Tokens that the model made"],
];

/** A line of facts, each with its explanation. */
function explained(line) {
  const made = element("span", "facts");
  for (const [at, fact] of line.split("\u00a0· ").entries()) {
    const one = element("span", "", fact);
    one.title = WHAT.find(([known]) => known.test(fact))?.[1] ?? "";
    made.append(at ? "\u00a0· " : "", one);
  }
  return made;
}

function facts(seen, usage, context) {
  const made = usage?.completion_tokens ?? seen.pieces, spent = usage?.baton;
  // A busy browser is handed many tokens at once: the engine knows the pace better.
  const seconds = spent?.decode_seconds || (seen.last - seen.first) / 1000;
  const told = [`${made} token${made === 1 ? "" : "s"}`];
  if (made > 1 && seconds > 0) told.push(`${Math.round((made - 1) / seconds)} tokens/s`);
  if (seen.first) told.push(`first after ${Math.round(seen.first - seen.asked)} ms`);
  if (spent) told.push(`waited ${Math.round(1000 * spent.queue_seconds)} ms`, `${(100 * spent.idle_ratio).toFixed(1)} % idle`);
  if (spent?.preemptions) told.push(`swapped out ${spent.preemptions}×`);
  const thought = usage?.completion_tokens_details?.reasoning_tokens;
  if (thought) told.push(`${thought} for thinking`);
  if (usage && context) told.push(`context ${usage.total_tokens} of ${context}`);
  if (seen.reason === "length") told.push("cut at the token limit");
  if (seen.reason === "stopped") told.push("stopped");
  return told.map((one) => one.replaceAll(" ", "\u00a0")).join("\u00a0· "); // a line ends between two of them
}

export class Pane {
  #running = null; // the AbortController of the answer that is coming

  /** `host`: what the page does for its panes. `saved`: as `saved()` told it. */
  constructor(host, { own = {}, draft = "", exchanges = [] } = {}) {
    this.host = host;
    this.own = own; // settings of this conversation alone
    this.node = template.content.firstElementChild.cloneNode(true);
    const part = (name) => this.node.querySelector(name);
    [this.log, this.input, this.title, this.send] = [".log", "textarea", "h2", ".send"].map(part);
    this.input.value = draft;
    this.input.oninput = () => this.#fit();
    this.input.onkeydown = (event) => this.#key(event);
    part("form").onsubmit = (event) => { event.preventDefault(); this.busy ? this.stop() : this.#submit(); };
    part(".all").onclick = () => this.#submitAll();
    part(".set").onclick = () => host.edit(this);
    part(".clear").onclick = () => this.clear();
    part(".close").onclick = () => { this.stop(); host.close(this); };
    part(".examples").onclick = ({ target }) => {
      if (target.matches(".four")) host.four(); else if (target.matches("button")) { this.ask(target.textContent); this.input.focus(); }
    };
    this.exchanges = exchanges; // {question, answer, facts, error, code}, and the elements that show them
    for (const one of exchanges) { this.#put(one); this.#finish(one); }
    this.#look();
  }

  get busy() { return this.#running !== null; }
  get last() { return this.exchanges.at(-1); }

  saved() {
    const exchanges = this.exchanges.map(({ question, answer: text, thought, facts: told, error, code }) =>
      told || error ? { question, answer: text, thought, facts: told, error, code }
        : { question, answer: text, thought, ...(text ? { facts: "stopped" } : { error: "The page was left before the answer came." }) });
    return { own: this.own, draft: this.input.value, exchanges };
  }

  async ask(question) {
    if (this.busy || !question.trim()) return;
    this.exchanges.push({ question, answer: "", thought: "" });
    this.#put(this.last);
    await this.#receive(this.last);
  }

  /** Asks the last question again. */
  again() {
    if (this.busy) return;
    const { question } = this.#drop();
    this.ask(question);
  }

  stop() { this.#running?.abort(); }

  clear() {
    this.stop();
    this.#running = null;
    while (this.last) this.#drop();
    this.#look();
    this.host.changed();
    this.input.focus();
  }

  #drop() {
    const dropped = this.exchanges.pop();
    dropped.node.remove();
    return dropped;
  }

  #edit() {
    this.input.value = this.#drop().question;
    this.#look();
    this.host.changed();
    this.input.focus();
  }

  // ---- what is seen

  #look() {
    this.node.classList.toggle("busy", this.busy);
    this.send.textContent = this.busy ? "Stop" : "Send";
    this.node.querySelector(".welcome").hidden = this.exchanges.length > 0;
    this.title.textContent = this.title.title = this.exchanges[0]?.question ?? "New conversation";
    const own = Object.entries(this.own).map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`);
    this.node.querySelector(".own").textContent = own.join(" · ");
    this.#fit();
  }

  refresh() { this.#look(); }

  #fit() {
    this.input.style.height = "auto";
    if (this.input.scrollHeight) this.input.style.height = `${this.input.scrollHeight}px`;
  }

  #put(exchange) {
    exchange.node = element("article", "exchange");
    exchange.text = element("div", this.host.chats() ? "text" : "text plain");
    exchange.fold = element("details", "thought");
    exchange.words = element("div", "text");
    exchange.fold.append(element("summary", "", "Thinking"), exchange.words);
    exchange.fold.hidden = true;
    exchange.node.append(element("div", "mine", exchange.question), exchange.fold, exchange.text);
    this.log.append(exchange.node);
    this.log.scrollTop = this.log.scrollHeight;
  }

  #draw(exchange) {
    const follows = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 80;
    if (exchange.thought) {
      exchange.fold.hidden = false;
      // What nobody looks at need not be drawn.
      if (exchange.fold.open) show(exchange.words, exchange.thought, this.#say);
      exchange.fold.ontoggle = () => exchange.fold.open && show(exchange.words, exchange.thought, this.#say);
      exchange.fold.firstChild.textContent = exchange.answer || exchange.facts || exchange.error ? "Thought before it answered" : "Thinking…";
    }
    if (this.host.chats()) show(exchange.text, exchange.answer, this.#say); else exchange.text.textContent = exchange.answer;
    if (follows) this.log.scrollTop = this.log.scrollHeight;
  }

  #finish(exchange) {
    this.#draw(exchange);
    exchange.text.hidden = !exchange.answer;
    const foot = element("footer");
    if (exchange.facts) foot.append(explained(exchange.facts));
    if (exchange.answer) foot.append(button("Copy", () => this.#copy(exchange)));
    foot.append(button("Try again", () => this.again(), "ours"), button("Edit", () => this.#edit(), "ours"));
    if (exchange.error) exchange.node.append(element("div", "wrong", exchange.error));
    exchange.node.append(foot);
    this.log.scrollTop = this.log.scrollHeight;
  }

  #say = (text) => this.host.say(text, true);

  async #copy({ answer: text }) {
    const done = await navigator.clipboard?.writeText(text).then(() => true, () => false);
    this.host.say(done ? "Copied." : "The browser does not allow copying here: mark the text instead.", true);
  }

  // ---- asking

  #submit() {
    const question = this.input.value.trim();
    if (this.busy || !question) return;
    this.input.value = "";
    this.ask(question);
  }

  #submitAll() {
    const question = this.input.value.trim();
    if (!question) return;
    this.input.value = "";
    this.#fit();
    this.host.askAll(question);
  }

  #key(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    if (event.ctrlKey || event.metaKey) this.#submitAll(); else this.#submit();
  }

  async #receive(exchange) {
    const mine = this.#running = new AbortController();
    const seen = { asked: performance.now(), first: 0, last: 0, pieces: 0, reason: "" };
    let usage = null, drawing = 0;
    this.#look();
    this.host.changed();
    try {
      const [path, body] = await this.host.request(this);
      for await (const piece of answer(path, body, mine.signal)) {
        usage = piece.usage ?? usage;
        seen.reason = piece.reason ?? seen.reason;
        if (!piece.text && !piece.thought) continue;
        seen.last = performance.now();
        seen.first ||= seen.last;
        seen.pieces += 1;
        exchange.answer += piece.text;
        exchange.thought = (exchange.thought ?? "") + piece.thought;
        drawing ||= requestAnimationFrame(() => { drawing = 0; this.#draw(exchange); });
      }
    } catch (error) {
      if (error.name === "AbortError") seen.reason = "stopped";
      else Object.assign(exchange, { error: inWords(error), code: error.code });
    }
    cancelAnimationFrame(drawing);
    if (!exchange.error || exchange.answer) exchange.facts = facts(seen, usage, this.host.context());
    this.#finish(exchange);
    if (this.#running !== mine) return; // cleared meanwhile
    this.#running = null;
    this.#look();
    this.host.changed();
    this.host.answered(this, exchange);
  }
}
