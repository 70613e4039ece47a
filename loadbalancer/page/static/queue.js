// The tab "Queue and jobs": what runs and waits, and the jobs of this key.

import { html, useEffect, useState } from "./vendor/preact.js";
import { getJson, request } from "./api.js";
import { moment, number, seconds } from "./format.js";
import { Table } from "./table.js";

const EVERY_MS = 2000;

// Loads again and again while the tab is shown; `reload` does it at once.
export function usePolled(path) {
  const [found, setFound] = useState(null), [problem, setProblem] = useState(null), [count, setCount] = useState(0);
  useEffect(() => {
    if (!path) return undefined;
    let isGone = false, timer = 0;
    const load = async () => {
      try {
        const next = await getJson(path);
        if (!isGone) { setFound(next); setProblem(null); }
      } catch (error) { if (!isGone) setProblem(error.message); }
      if (!isGone) timer = setTimeout(load, EVERY_MS);
    };
    load();
    return () => { isGone = true; clearTimeout(timer); };
  }, [path, count]);
  return [found, problem, () => setCount(count + 1)];
}

export function Queue({ session, isAdmin }) {
  const [model, setModel] = useState("");
  const query = model ? `?model=${encodeURIComponent(model)}` : "";
  return html`<div class="bar"><h2>Queue and jobs</h2>
      <label>Model <select value=${model} onChange=${(event) => setModel(event.target.value)}>
        <option value="">all</option>${session.models.map(({ name }) => html`<option key=${name} value=${name}>${name}</option>`)}</select></label>
    </div>
    ${isAdmin && html`<${Tasks} query=${query} />`}
    ${session.scopes.includes("jobs") ? html`<${Jobs} model=${model} />` : html`<p class="notice">This key has no scope <code>jobs</code>: it has no jobs to show.</p>`}`;
}

function Tasks({ query }) {
  const [found, problem] = usePolled(`/ui/tasks${query}`);
  return html`<section class="card"><h3>Tasks ${found && html`<span class="muted">${number(found.total)}</span>`}</h3>
    ${problem && html`<p class="bad" role="alert">${problem}</p>`}
    ${found?.tasks.length > 0 && html`<${Table} label="Tasks" columns=${["Task", "Model~", "Owner~", "State", "Progress", "#Place", "#Ready in", "#Age", "Worker~"]}>
      ${found.tasks.map((row) => html`<tr key=${row.id}>
        <th scope="row"><code>${row.id.slice(0, 8)}…${row.id.slice(-4)}</code></th><td class="wide" title=${row.model}>${row.model}</td><td class="wide" title=${row.owner}>${row.owner}</td><td>${row.state}</td>
        <td class="num start"><${Progress} of=${row} /></td>
        <td class="num">${row.state === "queued" ? number(row.position + 1) : ""}</td><td class="num">${seconds(row.eta_s)}</td>
        <td class="num">${seconds(row.age_s)}</td><td class="wide">${row.worker ?? ""}</td></tr>`)}<//>`}
    ${found && found.total > found.limit && html`<p class="muted">The first ${found.limit} of ${number(found.total)}.</p>`}
    ${found?.total === 0 && html`<p class="muted">Nothing waits or runs. Requests appear here while they do.</p>`}
  </section>`;
}

const STATES = ["queued", "running", "done", "failed", "cancelled"];

function Jobs({ model }) {
  const [found, problem, reload] = usePolled("/v1/jobs?limit=50");
  const [state, setState] = useState(""), [refusal, setRefusal] = useState(null);
  const end = async (job) => {
    const verb = isEnded(job) ? "Delete" : "Cancel";
    if (!confirm(`${verb} job ${job.id}?`)) return;
    setRefusal(null);
    await request("DELETE", `/v1/jobs/${job.id}`).catch((error) => setRefusal(error.message));
    reload();
  };
  const jobs = (found?.data ?? []).filter((job) => (!model || job.model === model) && (!state || job.state === state));
  return html`<section class="card"><header class="bar"><h3>Jobs</h3>
      <label>State <select value=${state} onChange=${(event) => setState(event.target.value)}>
        <option value="">all</option>${STATES.map((each) => html`<option key=${each} value=${each}>${each}</option>`)}</select></label></header>
    ${[problem, refusal].filter(Boolean).map((each) => html`<p class="bad" role="alert" key=${each}>${each}</p>`)}
    ${jobs.length > 0 && html`<${Table} label="Jobs" columns=${["Job", "Model~", "State", "Created", "Progress", "#Place", "#Ready in", "Result", "Action"]}>
      ${jobs.map((job) => html`<tr key=${job.id}>
        <th scope="row"><code>${job.id}</code></th><td class="wide" title=${job.model}>${job.model}</td>
        <td class=${job.error ? "wrap" : ""}><span class=${job.state === "failed" ? "bad" : ""}>${job.state}</span>${job.error && html`: ${job.error.message}`}</td><td>${moment(job.created_at)}</td>
        <td class="num start"><${Progress} of=${job} /></td>
        <td class="num">${job.state === "queued" && job.position !== null ? number(job.position + 1) : ""}</td><td class="num">${isEnded(job) ? "" : seconds(job.eta_s)}</td>
        <td><${Thumbnails} job=${job} /></td>
        <td><button type="button" class="quiet" aria-label=${`${isEnded(job) ? "Delete" : "Cancel"} ${job.id}`} onClick=${() => end(job)}>${isEnded(job) ? "Delete" : "Cancel"}</button></td></tr>`)}<//>`}
    ${found && jobs.length === 0 && (found.data.length > 0 ? html`<p class="muted">No job of this model and state.</p>`
      : html`<p class="muted">No jobs. A request becomes one by <code>POST /v1/jobs</code>; it goes on after a restart of the server.</p>`)}
  </section>`;
}

const Progress = ({ of: { step, steps } }) => html`<progress max=${steps || 1} value=${step} aria-label=${`${step} of ${steps} steps`}></progress> ${step}/${steps}`;

const isEnded = (job) => ["done", "failed", "cancelled"].includes(job.state);

// The first images of a finished job, loaded once and shown small.
function Thumbnails({ job }) {
  const [images, setImages] = useState([]);
  const isShown = job.state === "done" && job.path.startsWith("/v1/images");
  useEffect(() => {
    if (!isShown) return undefined;
    let isGone = false;
    getJson(`/v1/jobs/${job.id}/result`).then((result) => {
      if (!isGone) setImages(result.data.slice(0, 4).map((each) => each.url ?? `data:image/${result.output_format ?? "png"};base64,${each.b64_json}`));
    }, () => {});
    return () => { isGone = true; };
  }, [job.id, isShown]);
  return html`${images.map((image, index) => html`<img key=${index} class="thumbnail" src=${image} alt=${`image ${index + 1} of the job`} />`)}`;
}
