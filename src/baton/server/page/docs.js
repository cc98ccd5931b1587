"use strict";

const $ = (id) => document.getElementById(id);

function element(tag, text = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
}

function kind(field) {
  if (field.$ref) return field.$ref.split("/").pop();
  if (field.anyOf) return field.anyOf.map(kind).filter((name) => name !== "null").join(" or ");
  if (field.enum) return field.enum.map((value) => JSON.stringify(value)).join(" or ");
  return field.type === "array" ? `list of ${kind(field.items)}` : (field.type ?? "any") + range(field);
}

function range(field) {
  const low = field.minimum ?? field.exclusiveMinimum, high = field.maximum ?? field.maxLength;
  if (high == null) return "";
  return field.maxLength ? `, at most ${high} characters` : `, ${"minimum" in field ? "" : "above "}${low} to ${high}`;
}

function fields(schema) {
  const table = element("table");
  for (const [name, field] of Object.entries(schema.properties)) {
    const row = element("tr"), must = schema.required?.includes(name);
    const rest = must ? "required" : field.default == null ? "" : `default ${JSON.stringify(field.default)}`;
    row.append(element("td"), element("td", kind(field)), element("td", rest), element("td", field.description ?? ""));
    row.firstChild.append(element("code", name));
    table.append(row);
  }
  return table;
}

function show(document_) {
  $("version").textContent = document_.info.version;
  for (const [path, methods] of Object.entries(document_.paths)) {
    for (const [method, route] of Object.entries(methods)) {
      if (method === "head") continue;
      const title = element("h2");
      title.append(element("code", `${method.toUpperCase()} ${path}`));
      $("routes").append(title);
      if (route.description) $("routes").append(element("div", route.description));
      const body = route.requestBody?.content["application/json"].schema.$ref;
      if (body) $("routes").append(fields(document_.components.schemas[body.split("/").pop()]));
    }
  }
}

async function start() {
  $("example").textContent = `curl ${location.origin}/v1/chat/completions -H 'content-type: application/json' \\
  -d '{"messages": [{"role": "user", "content": "What is 4821 + 377?"}]}'`;
  const key = sessionStorage.getItem("baton-key");
  const response = await fetch("/openapi.json", { headers: key ? { authorization: `Bearer ${key}` } : {} });
  if (response.ok) show(await response.json());
  else $("routes").textContent = "This server needs its API key: enter it on the chat page, in this tab, and come back.";
}

start();
