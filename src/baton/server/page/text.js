// A model's text as elements: Markdown by marked, made safe by DOMPurify. Its HTML is text, and it loads nothing.
import { Marked } from "/marked.js";

const purify = globalThis.DOMPurify;

export function element(tag, name = "", text = "") {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text) made.textContent = text;
  return made;
}

export function button(text, does, name = "") {
  const made = element("button", name, text);
  made.type = "button";
  made.onclick = does;
  return made;
}

const SIGNS = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escaped = (text) => text.replace(/[&<>"']/g, (sign) => SIGNS[sign]);

// A formula is shown as it was written: Markdown would take its backslashes, stars and underscores.
const FORMULA = /^(?:\$\$[^$]+\$\$|\\\([\s\S]+?\\\)|\\\[[\s\S]+?\\\]|\$(?!\s)[^$\n]*[^$\s]\$(?!\d))/;
const formula = {
  name: "formula",
  level: "inline",
  start: (source) => { const at = source.search(/\$|\\[([]/); return at < 0 ? undefined : at; },
  tokenizer: (source) => { const match = FORMULA.exec(source); return match ? { type: "formula", raw: match[0] } : undefined; },
  renderer: ({ raw }) => `<span class="formula">${escaped(raw)}</span>`,
};

const marked = new Marked({ gfm: true, breaks: true }, {
  extensions: [formula],
  // Tags are text like any other.
  tokenizer: { html: () => undefined, tag: () => undefined },
  renderer: {
    html: ({ text }) => escaped(text),
    // A picture would be fetched: its address is shown as a link.
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
  },
});

const ALLOWED = {
  ALLOWED_TAGS: ["a", "b", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "input",
    "li", "ol", "p", "pre", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"],
  ALLOWED_ATTR: ["align", "checked", "class", "disabled", "href", "start", "type"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  // Else these, too, would have to look like addresses.
  ADD_URI_SAFE_ATTR: ["align", "start", "type"],
  RETURN_DOM_FRAGMENT: true,
};

/** A block of code, with a button that copies it. */
function framed(code, say) {
  const frame = element("div", "frame");
  code.replaceWith(frame);
  const copy = button("Copy", async () => {
    const done = await navigator.clipboard?.writeText(code.textContent).then(() => true, () => false);
    say(done ? "Copied." : "The browser does not allow copying here: mark the text instead.");
  }, "copy");
  copy.setAttribute("aria-label", "Copy this code");
  frame.append(code, copy);
}

function block(token, say) {
  const made = element("div", "block");
  made.append(purify.sanitize(marked.parser([token]), ALLOWED));
  for (const link of made.querySelectorAll("a")) Object.assign(link, { target: "_blank", rel: "noopener noreferrer nofollow" });
  made.querySelectorAll("pre").forEach((code) => framed(code, say));
  for (const table of made.querySelectorAll("table")) {
    const frame = element("div", "wide");
    frame.tabIndex = 0;
    table.replaceWith(frame);
    frame.append(table);
  }
  return made;
}

/** Shows the text inside `place`, and touches only the blocks that are new or grew. `say` tells people something. */
export function show(place, text, say) {
  const blocks = marked.lexer(text).filter(({ type }) => type !== "space");
  blocks.forEach((token, at) => {
    const old = place.children[at];
    if (old?.source === token.raw) return;
    const made = block(token, say);
    made.source = token.raw;
    if (old) old.replaceWith(made); else place.append(made);
  });
  while (place.children.length > blocks.length) place.lastChild.remove();
}
