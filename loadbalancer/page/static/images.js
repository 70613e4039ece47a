// Images: a prompt and its settings, previews in place of the picture, and edits with a mask drawn here.

import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { events, getJson, request } from "./api.js";
import { seconds } from "./format.js";
import { useHistory } from "./history.js";
import { Mask } from "./mask.js";
import { Snippets } from "./snippets.js";

const PREVIEWS = 3;

export function Images({ model, keys }) {
  const [card, setCard] = useState(null), [form, setForm] = useState({ prompt: "a handwritten seven", n: 1 });
  const [images, setImages] = useState([]), [problem, setProblem] = useState(""), running = useRef(null), [isRunning, setRunning] = useState(false);
  const [source, setSource] = useState(null), mask = useRef(null);
  const [past, remember, forget] = useHistory(model.name);
  useEffect(() => {
    getJson(`/v1/models/${encodeURIComponent(model.name)}`).then(setCard, (error) => setProblem(error.message));
    return () => running.current?.abort();
  }, [model.name]);
  const set = (name) => (event) => setForm({ ...form, [name]: event.target.type === "number" ? event.target.valueAsNumber : event.target.value });
  const body = requestBody(model, form);
  const modes = card?.modes ?? ["text"];

  const start = async (event) => {
    event.preventDefault();
    const abort = new AbortController();
    running.current = abort;
    setRunning(true); setProblem(""); remember(form);
    setImages(Array.from({ length: form.n || 1 }, () => ({ state: "sending", step: 0, steps: 0 })));
    try {
      const sent = source ? await editForm(body, source, mask.current) : { ...body, stream: true, partial_images: PREVIEWS };
      const response = await request("POST", source ? "/v1/images/edits" : "/v1/images/generations", { body: sent, signal: abort.signal });
      for await (const { event: name, data } of events(response)) {
        if (name.endsWith(".progress")) change(data.index, { state: data.state, step: data.step, steps: data.steps, position: data.queue_position, eta_s: data.eta_s });
        else if (name.endsWith(".partial_image")) change(data.index, { ...picture(data), isPreview: true });
        else if (name.endsWith(".completed")) change(data.index, { ...picture(data), isPreview: false, state: "done", seed: data.seed, timings: data.timings });
        else if (name === "error") throw new Error(data.error.message);
      }
    } catch (error) {
      setProblem(abort.signal.aborted ? "Cancelled." : error.message);
      setImages((before) => before.filter((each) => each.state === "done"));
    } finally { setRunning(false); }
  };
  const change = (index, fields) => setImages((before) => before.map((each, at) => {
    if (at !== index) return each;
    if (fields.url && each.isPreview) URL.revokeObjectURL(each.url);
    return { ...each, ...fields };
  }));

  return html`<div class="columns">
    <form class="card form" onSubmit=${start} aria-label="Image">
      <label>Prompt <textarea rows="3" dir="auto" required value=${form.prompt} onInput=${set("prompt")}></textarea></label>
      <div class="fields">
        <${Field} name="Size" value=${form.size} set=${set("size")} placeholder=${card?.defaults.size ?? "auto"} pattern="[0-9]+x[0-9]+" />
        <${Field} name="Steps" type="number" min="1" max=${card?.limits.max_steps} value=${form.num_inference_steps} set=${set("num_inference_steps")} placeholder=${card?.defaults.steps} />
        <${Field} name="Guidance" type="number" min="0" step="0.1" value=${form.guidance_scale} set=${set("guidance_scale")} placeholder=${card?.defaults.guidance_scale} />
        <${Field} name="Sampler" value=${form.scheduler} set=${set("scheduler")} placeholder=${card?.defaults.scheduler} />
        <${Field} name="Seed" type="number" min="0" value=${form.seed} set=${set("seed")} placeholder="random" />
        <${Field} name="Images" type="number" min="1" max=${card?.limits.max_n} value=${form.n} set=${set("n")} />
        ${(card?.loras.length ?? 0) > 0 && html`<label>LoRA <select value=${form.lora ?? ""} onChange=${set("lora")}>
          <option value="">none</option>${card.loras.map((each) => html`<option key=${each} value=${each}>${each}</option>`)}</select></label>`}
      </div>
      <label>Without <input dir="auto" value=${form.negative_prompt ?? ""} onInput=${set("negative_prompt")} placeholder="what the image should not show" /></label>
      ${modes.includes("image") && html`<${Source} source=${source} setSource=${setSource} mask=${mask} canMask=${modes.includes("inpaint")} images=${images} />`}
      <div class="bar">${/* Keys: a button that becomes another one while it is clicked would act as that one. */ ""}
        ${isRunning ? html`<button key="cancel" type="button" onClick=${() => running.current.abort()}>Cancel</button>` : html`<button key="start" class="primary">${source ? "Edit" : "Generate"}</button>`}
        ${problem && html`<span class="bad" role="alert">${problem}</span>`}
      </div>
      ${source ? html`<p class="muted">An edit is a form: see <a href="/docs">the API</a>.</p>` : html`<${Snippets} path="/v1/images/generations" body=${body} keys=${keys} />`}
      ${past.length > 0 && html`<details><summary>Earlier requests of this browser</summary>
        <ul class="past">${past.map((each, at) => html`<li key=${at}><button type="button" class="quiet" dir="auto" onClick=${() => setForm(each)}>${each.prompt}</button></li>`)}</ul>
        <button type="button" class="quiet" onClick=${forget}>Forget them</button></details>`}
    </form>
    <section class="gallery" aria-label="Images" aria-live="polite">
      ${images.map((each, index) => html`<${Picture} key=${index} image=${each} index=${index} onEdit=${modes.includes("image") ? () => setSource({ url: each.url, blob: each.blob }) : null} />`)}
      ${images.length === 0 && html`<p class="muted placeholder">The images appear here.</p>`}
    </section></div>`;
}

function Field({ name, value, set, type = "text", ...rest }) {
  return html`<label>${name} <input type=${type} value=${Number.isNaN(value) ? "" : value ?? ""} onInput=${set} ...${rest} /></label>`;
}

function Picture({ image, index, onEdit }) {
  const isDone = image.state === "done";
  return html`<figure class="picture">
    ${image.url ? html`<img src=${image.url} class=${image.isPreview ? "preview" : ""} alt=${isDone ? `Image ${index + 1}` : `Preview of image ${index + 1}`} />` : html`<div class="empty"></div>`}
    <figcaption>
      ${isDone ? html`seed ${image.seed}, waited ${seconds(image.timings.queued_s ?? image.timings.waited_s)}, ran ${seconds(image.timings.running_s ?? image.timings.ran_s)}
          <span class="spacer"></span>${onEdit && html`<button type="button" class="quiet" onClick=${onEdit}>Edit</button>`}
          <a href=${image.url} download=${`muster-${image.seed}.png`}>Save</a>`
        : html`<progress max=${image.steps || 1} value=${image.step} aria-label=${`Progress of image ${index + 1}`}></progress>
          ${image.state === "queued" ? `place ${image.position + 1} in the queue` : image.steps ? `step ${image.step} of ${image.steps}` : image.state}
          ${image.eta_s !== null && image.eta_s !== undefined ? `, ready in ${seconds(image.eta_s)}` : ""}`}
    </figcaption></figure>`;
}

// The image to change: a file, or one that was made here; with a mask where the model repaints parts.
function Source({ source, setSource, mask, canMask }) {
  const open = (event) => {
    const [file] = event.target.files;
    if (file) setSource({ url: URL.createObjectURL(file), blob: file });
  };
  return html`<fieldset><legend>Change an image</legend>
    <label>File <input type="file" accept="image/*" onChange=${open} /></label>
    ${source && html`<button type="button" class="quiet" onClick=${() => setSource(null)}>Remove it</button>
      ${canMask && html`<${Mask} source=${source.url} mask=${mask} />`}`}
  </fieldset>`;
}

export function requestBody(model, form) {
  const body = { model: model.name, prompt: form.prompt };
  for (const name of ["size", "num_inference_steps", "guidance_scale", "scheduler", "seed", "n", "negative_prompt"]) {
    const value = form[name];
    if (value !== undefined && value !== "" && !Number.isNaN(value)) body[name] = value;
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

function picture(data) {
  const bytes = Uint8Array.from(atob(data.b64_json), (each) => each.charCodeAt(0));
  const blob = new Blob([bytes], { type: `image/${data.output_format}` });
  return { blob, url: URL.createObjectURL(blob) };
}
