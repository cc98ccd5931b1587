// A model's text as elements. Nothing of it is ever read as HTML: it only becomes text nodes.

export function element(tag, name = "", text = "") {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text) made.textContent = text;
  return made;
}

const INLINE = /(`+)([^`]+)\1|\*\*(\S(?:[^*]*\S)?)\*\*|\*(\S(?:[^*]*\S)?)\*/g;

function inline(made, text) {
  let at = 0;
  for (const found of text.matchAll(INLINE)) {
    const [all, , code, bold, slanted] = found;
    made.append(text.slice(at, found.index), code ? element("code", "", code) : bold ? element("b", "", bold) : element("i", "", slanted));
    at = found.index + all.length;
  }
  made.append(text.slice(at));
  return made;
}

const FENCE = /^\s*```/, ITEM = /^(\s*)([-*•]|\d+[.)])\s+(.*)$/, HEADING = /^(#{1,4})\s+(.*)$/;

/** The text cut into blocks: code, lists, headings, paragraphs. */
function cut(text) {
  const blocks = [];
  let open = null;
  for (const line of text.split("\n")) {
    const fence = FENCE.test(line);
    if (open?.kind === "code") {
      if (fence) open = null; else open.lines.push(line);
      continue;
    }
    const kind = fence ? "code" : ITEM.test(line) ? "list" : HEADING.test(line) ? "heading" : line.trim() ? "plain" : "";
    if (open?.kind !== kind || kind === "heading") {
      open = kind && { kind, lines: [] };
      if (open) blocks.push(open);
    }
    if (open && !fence) open.lines.push(line);
  }
  return blocks;
}

function list(lines) {
  const made = element(/\d/.test(ITEM.exec(lines[0])[2]) ? "ol" : "ul");
  for (const line of lines) {
    const [, indent, mark, text] = ITEM.exec(line), numbered = /\d/.test(mark);
    const item = element("li", `${indent.length > 1 ? "deep " : ""}${numbered ? "numbered" : "dotted"}`);
    if (numbered) item.value = parseInt(mark);
    made.append(inline(item, text));
  }
  return made;
}

function block({ kind, lines }) {
  if (kind === "list") return list(lines);
  if (kind === "heading") return inline(element("h4"), HEADING.exec(lines[0])[2]);
  if (kind === "plain") return inline(element("p"), lines.join("\n"));
  const made = element("pre");
  made.append(element("code", "", lines.join("\n")));
  return made;
}

/** Shows the text inside `place`, and touches only the blocks that are new or grew. */
export function show(place, text) {
  const blocks = cut(text);
  blocks.forEach((found, at) => {
    const source = found.kind + found.lines.join("\n"), old = place.children[at];
    if (old?.source === source) return;
    const made = block(found);
    made.source = source;
    if (old) old.replaceWith(made); else place.append(made);
  });
  while (place.children.length > blocks.length) place.lastChild.remove();
}
