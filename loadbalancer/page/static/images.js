// Images: a prompt and its settings, previews in place of the picture, and edits with a mask drawn here.

import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { events, getJson, request } from "./api.js";
import { Fault, Field, typedValue } from "./fault.js";
import { useHistory, useKept } from "./history.js";
import { Mask } from "./mask.js";
import { Picture, received } from "./picture.js";
import { Snippets } from "./snippets.js";

const PREVIEWS = 3;
const FIELDS = ["prompt", "size", "num_inference_steps", "guidance_scale", "scheduler", "seed", "n", "negative_prompt"];

export function Images({ model, keys, samplers }) {
  const [card, setCard] = useState(null), [form, setForm] = useKept(`images.${model.name}`, { prompt: "a handwritten seven", n: 1 });
  const [images, setImages] = useState([]), [problem, setProblem] = useState(null), running = useRef(null), [isRunning, setRunning] = useState(false);
  const [source, setSource] = useState(null), mask = useRef(null), gallery = useRef(null);
  const [past, remember, forget] = useHistory(model.name);
  useEffect(() => {
    getJson(`/v1/models/${encodeURIComponent(model.name)}`).then(setCard, setProblem);
    return () => running.current?.abort();
  }, [model.name]);
  const set = (name) => (event) => {
    setForm({ ...form, [name]: typedValue(event) });
    if (problem?.param === name) setProblem(null);
  };
  const field = (param) => ({ param, problem, value: form[param], set: set(param) });
  const body = requestBody(model, form);
  const modes = card?.modes ?? ["text"];

  const start = async (event) => {
    event.preventDefault();
    const abort = new AbortController();
    running.current = abort;
    setRunning(true); setProblem(null); remember(form);
    try {
      const sent = source ? await editForm(body, source, mask.current) : { ...body, stream: true, partial_images: PREVIEWS };
      const response = await request("POST", source ? "/v1/images/edits" : "/v1/images/generations", { body: sent, signal: abort.signal });
      // Only now: a refused request leaves the pictures of the one before.
      setImages(Array.from({ length: form.n || 1 }, () => ({ state: "sent", step: 0, steps: 0 })));
      await receive(response);
    } catch (error) {
      setProblem(abort.signal.aborted ? { message: "Stopped.", isCalm: true } : error);
      setImages((before) => before.filter(({ url }) => url).map((each) => (each.state === "done" ? each : { ...each, state: "stopped" })));
    } finally { setRunning(false); }
  };
  const receive = async (response) => {
    let missing = form.n || 1;
    for await (const { event: name, data } of events(response)) {
      if (name.endsWith(".progress")) change(data.index, { state: data.state, step: data.step, steps: data.steps, position: data.queue_position, eta_s: data.eta_s });
      else if (name.endsWith(".partial_image")) change(data.index, { ...received(data), isPreview: true });
      else if (name.endsWith(".completed")) { change(data.index, { ...received(data), isPreview: false, state: "done", seed: data.seed, timings: data.timings }); missing -= 1; }
      else if (name === "error") throw data.error;
    }
    if (missing) throw new Error("The server has ended the answer before the last image.");
  };
  const change = (index, fields) => setImages((before) => before.map((each, at) => {
    if (at !== index) return each;
    if (fields.url && each.isPreview) URL.revokeObjectURL(each.url);
    return { ...each, ...fields };
  }));
  // On a phone the pictures are below the form.
  useEffect(() => {
    if (isRunning && images.length && gallery.current.getBoundingClientRect().top > 0.8 * innerHeight) gallery.current.scrollIntoView({ block: "start" });
  }, [isRunning, images.length]);
  const done = images.filter(({ state }) => state === "done").length;

  return html`<div class="columns">
    <form class="card form" onSubmit=${start} aria-label="Image">
      <label>Prompt <textarea rows="3" dir="auto" required value=${form.prompt} onInput=${set("prompt")}></textarea></label>
      <${Fault} problem=${problem} param="prompt" />
      <div class="fields">
        <${Field} name="Size" ...${field("size")} placeholder=${card?.defaults.size ?? "auto"} pattern="[0-9]+x[0-9]+|auto" title="width x height, such as 512x768" />
        <${Field} name="Steps" type="number" min="1" max=${card?.limits.max_steps} ...${field("num_inference_steps")} placeholder=${card?.defaults.steps} />
        <${Field} name="Guidance" type="number" min="0" step="any" max=${card?.limits.max_guidance_scale} ...${field("guidance_scale")} placeholder=${card?.defaults.guidance_scale} />
        <${Field} name="Sampler" list=${`samplers-${model.name}`} autocomplete="off" ...${field("scheduler")} placeholder=${card?.defaults.scheduler} />
        <${Field} name="Seed" type="number" min="0" ...${field("seed")} placeholder="random" />
        <${Field} name="Images" type="number" min="1" max=${card?.limits.max_n} ...${field("n")} />
        ${(card?.loras.length ?? 0) > 0 && html`<label>LoRA <select value=${form.lora ?? ""} onChange=${set("lora")}>
          <option value="">none</option>${card.loras.map((each) => html`<option key=${each} value=${each}>${each}</option>`)}</select></label>`}
      </div>
      <datalist id=${`samplers-${model.name}`}>${samplers.map((each) => html`<option key=${each} value=${each}></option>`)}</datalist>
      <${Field} name="Without" dir="auto" ...${field("negative_prompt")} placeholder="what the image should not show" />
      ${modes.includes("image") && html`<${Source} source=${source} setSource=${setSource} mask=${mask} canMask=${modes.includes("inpaint")} />`}
      <div class="bar">${/* Keys: a button that becomes another one while it is clicked would act as that one. */ ""}
        ${isRunning ? html`<button key="stop" type="button" onClick=${() => running.current.abort()}>Stop</button>` : html`<button key="start" class="primary">${source ? "Edit" : "Generate"}</button>`}
        <span class="muted num" role="status">${images.length > 0 && (isRunning || done > 0) ? `${done} of ${images.length} ${images.length === 1 ? "image" : "images"} ready` : isRunning ? "sent" : ""}</span>
      </div>
      <div class=${problem?.isCalm ? "calm" : ""}><${Fault} problem=${problem} known=${FIELDS} /></div>
      ${source ? html`<p class="muted">An edit is a form: see <a href="/docs">the API</a>.</p>` : html`<${Snippets} path="/v1/images/generations" body=${body} keys=${keys} />`}
      ${past.length > 0 && html`<details><summary>Earlier requests of this browser</summary>
        <ul class="past">${past.map((each, at) => html`<li key=${at}><button type="button" class="quiet" dir="auto" onClick=${() => setForm(each)}>${each.prompt}</button></li>`)}</ul>
        <button type="button" class="quiet" onClick=${forget}>Forget them</button></details>`}
    </form>
    <section class="gallery" aria-label="Images" ref=${gallery}>
      ${images.map((each, index) => html`<${Picture} key=${index} image=${each} index=${index} model=${model.name} onEdit=${modes.includes("image") ? () => setSource({ url: each.url, blob: each.blob }) : null} />`)}
      ${images.length === 0 && html`<p class="muted placeholder">The images appear here.</p>`}
    </section></div>`;
}

// The image to change: a file, or one that was made here; with a mask where the model repaints parts.
function Source({ source, setSource, mask, canMask }) {
  const open = (event) => {
    const [file] = event.target.files;
    if (file) setSource({ url: URL.createObjectURL(file), blob: file });
  };
  const box = useRef(null);
  useEffect(() => { if (source) box.current.scrollIntoView({ block: "nearest" }); }, [source]);
  return html`<fieldset ref=${box}><legend>Change an image</legend>
    <label>File <input type="file" accept="image/*" onChange=${open} /></label>
    ${source && html`<button type="button" class="quiet" onClick=${() => setSource(null)}>Remove it</button>
      ${canMask && html`<${Mask} source=${source.url} mask=${mask} />`}`}
  </fieldset>`;
}

export function requestBody(model, form) {
  const body = { model: model.name, prompt: form.prompt };
  for (const name of FIELDS.slice(1)) {
    const value = form[name];
    if (value !== undefined && value !== null && value !== "" && !Number.isNaN(value)) body[name] = value;
  }
  if (form.lora) body.loras = [{ name: form.lora }];
  return body;
}

async function editForm(body, source, mask) {
  const form = new FormData();
  for (const [name, value] of Object.entries(body)) form.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
  form.append("stream", "true");
  form.append("partial_images", String(PREVIEWS));
  form.append("image", source.blob, "image.png");
  const painted = mask ? await mask() : null;
  if (painted) form.append("mask", painted, "mask.png");
  return form;
}
