// Calls of an engine: a form from the schema of its input, or the input as JSON.

import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { getJson, postJson } from "./api.js";
import { Snippets } from "./snippets.js";

export function Calls({ model, keys }) {
  const path = `/v1/models/${encodeURIComponent(model.name)}:predict`;
  const [schema, setSchema] = useState(null), [text, setText] = useState("null"), [answer, setAnswer] = useState(null), [isRunning, setRunning] = useState(false), running = useRef(null);
  useEffect(() => () => running.current?.abort(), []);
  useEffect(() => {
    getJson("/openapi.json").then((document) => {
      const found = inputSchema(document, model.name);
      setSchema(found);
      if (found) setText(JSON.stringify(exampleOf(found, document), null, 2));
    }, () => {});
  }, [model.name]);
  let input = null, mistake = "";
  try { input = JSON.parse(text); } catch (error) { mistake = error.message; }
  const fields = schema?.type === "object" && schema.properties && input && typeof input === "object" ? Object.entries(schema.properties) : [];
  const send = async (event) => {
    event.preventDefault();
    setRunning(true);
    const started = performance.now(), abort = (running.current = new AbortController());
    try {
      const result = await postJson(path, { instances: [input] }, { signal: abort.signal });
      setAnswer({ text: JSON.stringify(result.predictions?.[0] ?? result, null, 2), note: `${Math.round(performance.now() - started)} ms` });
    } catch (error) { setAnswer(abort.signal.aborted ? { note: "Stopped." } : { text: error.message, isError: true }); } finally { setRunning(false); }
  };
  const setField = (name, kind) => (event) => {
    const value = kind === "boolean" ? event.target.checked : kind === "number" || kind === "integer" ? event.target.valueAsNumber : event.target.value;
    setText(JSON.stringify({ ...input, [name]: value }, null, 2));
  };
  return html`<div class="columns">
    <form class="card form" onSubmit=${send} aria-label="Input">
      ${fields.map(([name, each]) => html`<label key=${name}>${each.title ?? name} ${fieldFor(each, input[name], setField(name, each.type))}</label>`)}
      <label>Input as JSON <textarea rows="8" spellcheck=${false} value=${text} onInput=${(event) => setText(event.target.value)}></textarea></label>
      ${mistake && html`<p class="fault" role="alert">This is no JSON: ${mistake}</p>`}
      <div class="bar">${isRunning ? html`<button key="stop" type="button" onClick=${() => running.current.abort()}>Stop</button>` : html`<button key="start" class="primary" disabled=${Boolean(mistake)}>Call</button>`}</div>
      <${Snippets} path=${path} body=${{ instances: [input] }} keys=${keys} />
    </form>
    <section class="card" aria-label="Result" aria-live="polite">
      ${answer ? html`${answer.isError ? html`<p class="fault" role="alert">${answer.text}</p>` : answer.text && html`<pre tabindex="0" aria-label="Result"><code>${answer.text}</code></pre>`}
        ${answer.note && html`<p class="muted">${answer.note}</p>`}`
        : html`<p class="muted placeholder">The result appears here.</p>`}
    </section></div>`;
}

function fieldFor(schema, value, set) {
  if (schema.enum) return html`<select value=${value} onChange=${set}>${schema.enum.map((each) => html`<option key=${each} value=${each}>${each}</option>`)}</select>`;
  if (schema.type === "boolean") return html`<input type="checkbox" checked=${value} onChange=${set} />`;
  if (schema.type === "number" || schema.type === "integer") return html`<input type="number" step=${schema.type === "integer" ? 1 : "any"} value=${value} onInput=${set} />`;
  if (schema.type === "string") return html`<input value=${value ?? ""} onInput=${set} />`;
  return html`<span class="muted">see the JSON below</span>`;
}

// The schema of one input, from the documented body of the model's own path.
function inputSchema(document, name) {
  const body = document.paths[`/v1/models/${name}:predict`]?.post?.requestBody?.content["application/json"]?.schema;
  const found = resolved(body, document)?.properties?.instances?.items;
  return found ? resolved(found, document) : null;
}

function resolved(schema, document) {
  if (!schema?.$ref) return schema;
  return schema.$ref.slice(2).split("/").reduce((at, part) => at?.[part], document);
}

export function exampleOf(schema, document, depth = 0) {
  const found = resolved(schema, document) ?? {};
  if (found.default !== undefined) return found.default;
  if (found.examples?.length) return found.examples[0];
  if (found.enum) return found.enum[0];
  if (depth > 4) return null;
  if (found.anyOf) return exampleOf(found.anyOf[0], document, depth + 1);
  switch (found.type) {
    case "object": return Object.fromEntries(Object.entries(found.properties ?? {}).map(([name, each]) => [name, exampleOf(each, document, depth + 1)]));
    case "array": return found.items ? Array.from({ length: found.minItems ?? 1 }, () => exampleOf(found.items, document, depth + 1)) : [];
    case "string": return "text";
    case "integer": case "number": return found.minimum ?? 0;
    case "boolean": return false;
    default: return null;
  }
}
