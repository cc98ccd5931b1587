// The settings' dialog. Values are kept as they are typed; an empty field leaves the choice to what is above it.
import { savedKey, saveKey } from "/stream.js";

const $ = (id) => document.getElementById(id);
const dialog = $("settings"), form = dialog.querySelector("form"), inputs = [...form.querySelectorAll("[name]")];
const defaults = new Map(inputs.map((input) => [input, input.placeholder]));

/** The request's fields of these settings; the system prompt is a message and none of them. */
export function fields({ system, stop, ...numbers }) {
  const options = Object.fromEntries(Object.entries(numbers).map(([name, value]) => [name, Number(value)]));
  if (stop) options.stop = stop.split("\n").filter(Boolean).map((line) => line.replaceAll("\\n", "\n"));
  return options;
}

function typed() {
  const given = inputs.filter((input) => input.value.trim() && input.validity.valid);
  return Object.fromEntries(given.map((input) => [input.name, input.value]));
}

/** Shows what the server takes for fields that are left empty. */
export function tellDefaults(values) {
  for (const input of inputs) if (input.name in values) defaults.set(input, `${values[input.name]}`);
}

let finish = null; // what is to be done with what was typed, once

/** Edits `values` and hands them to `done`. `above`: the settings that empty fields follow, for one pane alone. */
export function edit(values, above, scope, done) {
  if (dialog.open) return;
  $("scope").textContent = scope;
  for (const input of inputs) {
    input.value = values[input.name] ?? "";
    input.placeholder = above?.[input.name] ?? defaults.get(input);
  }
  $("keyed").hidden = $("forget").hidden = Boolean(above);
  $("key").value = savedKey();
  finish = () => {
    finish = null;
    const key = $("key").value.trim(), changed = key !== savedKey();
    saveKey(key);
    done(typed(), changed);
  };
  dialog.showModal();
}

export function enterKey() { $("key").focus(); }

// The close event comes a moment later, and a page that is left meanwhile would forget what was typed.
form.onsubmit = (event) => { event.preventDefault(); finish?.(); dialog.close(); };
dialog.onclose = () => finish?.();
dialog.onclick = (event) => { if (event.target === dialog && form.reportValidity()) dialog.close(); };
$("reset").onclick = () => { for (const input of inputs) input.value = ""; };
