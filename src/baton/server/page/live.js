// What the engine does, drawn from two answers of /load.
import { get } from "/stream.js";

const $ = (id) => document.getElementById(id);
let before = null, timer = 0;

/** A pip for each row that the batch ever had here: in it now, and at work now. */
function showRows({ rows, rows_occupied: occupied }) {
  const place = $("rows");
  while (place.children.length < Math.min(rows, 32)) place.append(document.createElement("i"));
  [...place.children].forEach((pip, at) => {
    pip.classList.toggle("row", at < rows);
    pip.classList.toggle("on", at < occupied);
  });
  $("occupied").textContent = `${occupied}/${rows}`;
}

function showRates(now) {
  if (before && now.at - before.at < 900) return;
  if (before && now.generated_tokens >= before.generated_tokens) {
    const useful = now.useful_slots - before.useful_slots, idle = now.idle_slots - before.idle_slots;
    $("speed").textContent = Math.round((now.generated_tokens - before.generated_tokens) / ((now.at - before.at) / 1000));
    $("idle").textContent = useful + idle ? `${(100 * idle / (useful + idle)).toFixed(1)} %` : "–";
  }
  before = now;
}

/** Asks for ever while the page is seen: once a second, and oftener while queries are live, which come and go quickly.
    `told(null)` after each answer, `told(error)` else; it answers whether there is something to see. */
export async function watch(told) {
  clearTimeout(timer);
  let wait = 1000;
  if (!document.hidden) {
    try {
      const now = { ...await get("/load"), at: performance.now() };
      showRows(now);
      showRates(now);
      if (told(null) || now.server_load) wait = 250;
    } catch (error) {
      for (const id of ["occupied", "speed", "idle"]) $(id).textContent = "–";
      $("rows").replaceChildren();
      before = null;
      wait = 3000;
      told(error);
    }
  }
  clearTimeout(timer);
  timer = setTimeout(watch, wait, told);
}
