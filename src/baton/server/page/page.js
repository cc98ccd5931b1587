// The page: several conversations side by side, their settings, and what is kept over a reload.
import { watch } from "/live.js";
import { Pane } from "/pane.js";
import { edit, enterKey, fields, tellDefaults } from "/settings.js";
import { get, inWords, post } from "/stream.js";

const $ = (id) => document.getElementById(id);
const MOST = 5; // a browser opens six connections to a server, and /load needs one
const KEPT = "baton-chats", NEW = {};

const panes = [];
let settings = NEW;
let model = null; // {id, max_model_len, chats}, once the server has told
let chosen = null; // the name of a model, where there are several

// ---- what panes ask of the page

const host = {
  chats: () => model?.chats ?? true,
  context: () => model?.max_model_len,
  changed: () => { names(); keep(); },
  edit: (pane) => edit(pane.own, settings, `Of “${pane.title.textContent}” alone. An empty field follows the settings of the page.`, (values) => {
    pane.own = values;
    pane.refresh();
    keep();
  }),
  close: (pane) => {
    panes.splice(panes.indexOf(pane), 1);
    pane.node.remove();
    if (!panes.length) add();
    host.changed();
    panes.at(-1).input.focus();
  },
  askAll: (question) => {
    const free = panes.filter((pane) => !pane.busy);
    free.forEach((pane) => pane.ask(question));
    if (free.length < panes.length) host.say(`Asked ${free.length} of ${panes.length}: the others are still answering.`, true);
  },
  four: () => {
    const questions = [...panes[0].node.querySelectorAll(".examples button:not(.four)")].map((one) => one.textContent);
    while (panes.length < questions.length) add();
    panes.filter((pane) => !pane.last).forEach((pane, at) => pane.ask(questions[at % questions.length]));
  },
  request: async (pane) => {
    watch(told);
    const { system, ...asked } = { ...settings, ...pane.own };
    const rest = { ...fields(asked), ...named(), stream: true, baton_usage: true };
    if (!host.chats()) return ["/v1/completions", await completion(pane, rest)];
    const said = pane.exchanges.filter((one) => one.answer || one === pane.last);
    const messages = said.flatMap((one) => [["user", one.question], ["assistant", one.answer]]).filter(([, text]) => text);
    if (system) messages.unshift(["system", system]);
    return ["/v1/chat/completions", { messages: messages.map(([role, content]) => ({ role, content })), ...rest }];
  },
  answered: (pane, exchange) => {
    host.say(`${pane.name}: ${exchange.error ?? exchange.answer.slice(0, 1000)}`);
    if (exchange.code === "invalid_api_key") editAll(true);
    else if (chosen && !model?.max_model_len) meet().catch(() => {}); // it is loaded by now
  },
  /** To those who listen; `seen`: to all, for a while. */
  say: (text, seen = false) => {
    $("said").textContent = text;
    $("said").classList.toggle("unseen", !seen);
    if (seen) setTimeout(() => $("said").classList.add("unseen"), 4000);
  },
};

/** A model without a chat template goes on with the text, of which 16 tokens would come if none were asked for. */
async function completion(pane, rest) {
  const prompt = pane.exchanges.map((one) => one.question + one.answer).join("");
  const { count } = await (await post("/tokenize", { prompt, ...named() })).json();
  return { prompt, max_tokens: Math.max(1, Math.min(256, model.max_model_len - count)), ...rest };
}

// ---- panes

function add(saved) {
  const pane = new Pane(host, saved);
  panes.push(pane);
  $("panes").append(pane.node);
  seen.observe(pane.node);
  pane.refresh();
  return pane;
}

function names() {
  const several = panes.length > 1;
  document.body.classList.toggle("several", several);
  $("add").disabled = panes.length >= MOST;
  $("add").title = panes.length < MOST ? "Another conversation beside this one" : `A browser can hold ${MOST} answers at a time`;
  panes.forEach((pane, at) => {
    pane.name = `Conversation ${at + 1}`;
    pane.node.setAttribute("aria-label", pane.name);
  });
  const tabs = $("tabs");
  while (tabs.children.length > panes.length) tabs.lastChild.remove();
  while (tabs.children.length < panes.length) tabs.append(document.createElement("button"));
  [...tabs.children].forEach((tab, at) => {
    tab.type = "button";
    tab.textContent = at + 1;
    tab.setAttribute("aria-label", panes[at].name);
    tab.classList.toggle("busy", panes[at].busy);
    tab.onclick = () => { panes[at].node.scrollIntoView(); panes[at].input.focus({ preventScroll: true }); };
  });
}

const seen = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    $("tabs").children[panes.findIndex((pane) => pane.node === target)]?.classList.toggle("seen", isIntersecting);
  }
}, { threshold: 0.6 });

let leaving = false; // a browser that leaves ends the answers first, and that is nobody's failure

function keep() {
  if (leaving) return;
  try {
    sessionStorage.setItem(KEPT, JSON.stringify({ settings, chosen, panes: panes.map((pane) => pane.saved()) }));
  } catch {
    host.say("These conversations are too long to be kept over a reload.", true);
  }
}

function restore() {
  let kept = {};
  try { kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "{}"); } catch { /* what cannot be read is forgotten */ }
  settings = kept.settings ?? NEW;
  chosen = kept.chosen ?? null;
  for (const saved of kept.panes ?? [{}]) add(saved);
  names();
}

// ---- settings and keys

function editAll(key = false) {
  edit(settings, null, "Of all conversations; each pane may have settings of its own.", (values, changed) => {
    settings = values;
    keep();
    if (!changed) return;
    watch(told);
    for (const pane of panes) if (pane.last?.code === "invalid_api_key") pane.again();
  });
  if (key) enterKey();
}

$("set").onclick = () => editAll();
$("notice").querySelector("button").onclick = () => editAll(true);
$("add").onclick = () => {
  const pane = add();
  names();
  keep();
  pane.node.scrollIntoView();
  pane.input.focus({ preventScroll: true });
};
$("forget").onclick = () => {
  panes.forEach((pane) => pane.clear());
  panes.slice(1).forEach((pane) => host.close(pane));
  $("settings").close();
};
document.onkeydown = (event) => {
  if (event.key !== "Escape" || $("settings").open) return;
  const here = panes.find((pane) => pane.busy && pane.node.contains(document.activeElement));
  (here ? [here] : panes).forEach((pane) => pane.stop());
};
for (const event of ["beforeunload", "pagehide"]) {
  addEventListener(event, () => { keep(); leaving = true; setTimeout(() => { leaving = false; }, 1000); });
}

// ---- what the server is

function notice(text, key = false) {
  $("notice").hidden = !text;
  const [span, button] = $("notice").children;
  if (span.textContent !== text) span.textContent = text;
  button.hidden = !key;
}

const named = () => chosen ? { model: chosen } : {};

async function meet() {
  const { data } = await get("/v1/models");
  const card = data.find(({ id }) => id === chosen) ?? data[0], loaded = (card.state ?? "loaded") === "loaded";
  offer(data, card);
  // To ask a model that is not loaded would load it.
  const chats = !loaded || await post("/tokenize", { messages: [{ role: "user", content: "Hi" }], ...named() }).then(() => true, (error) => error.code !== "unsupported_parameter");
  model = { ...card, chats };
  tellDefaults(card.sampling_defaults ?? {});
  $("model").textContent = $("model").title = card.id;
  notice(chats ? "" : "This model has no chat template: it goes on with your text as it is (/v1/completions).");
}

/** A choice of models, where there are several. */
function offer(cards, card) {
  const several = cards.length > 1;
  chosen = several ? card.id : null;
  $("model").hidden = several;
  $("models").hidden = !several;
  if (!several) return;
  $("models").replaceChildren(...cards.map(({ id }) => new Option(id, id, false, id === card.id)));
  document.querySelectorAll('a[href^="/live"]').forEach((link) => { link.href = `/live?model=${encodeURIComponent(card.id)}`; });
}

$("models").onchange = ({ target }) => {
  chosen = target.value;
  model = null;
  keep();
  meet().catch(() => {});
};

function told(error) {
  if (!error && !model) meet().catch(() => {});
  if (!error) return panes.some((pane) => pane.busy);
  model = null;
  $("model").textContent = "…";
  notice(error.code === "invalid_api_key" ? "This server needs its API key." : inWords(error), error.code === "invalid_api_key");
}

restore();
watch(told);
panes[0].input.focus();
