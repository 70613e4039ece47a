// Commands of administrators: a fixed number of workers, restarts, and a pause of scaling.

import { html, useState } from "./vendor/preact.js";
import { moment } from "./format.js";

export function Commands({ session, state, send, answer }) {
  const [model, setModel] = useState(session.models[0].name), [workers, setWorkers] = useState(1), [minutes, setMinutes] = useState(15);
  const override = state.models[model]?.override, isPaused = Boolean(state.server.server?.paused_since);
  return html`<section class="card" aria-label="Commands"><h3>Commands</h3><div class="commands">
    <label>Model <select value=${model} onChange=${(event) => setModel(event.target.value)}>
      ${session.models.map(({ name }) => html`<option key=${name} value=${name}>${name}</option>`)}</select></label>
    <label>Workers <input type="number" min="0" max="1000" value=${workers} onInput=${(event) => setWorkers(Number(event.target.value))} /></label>
    <label>for minutes <input type="number" min="1" max="43200" value=${minutes} onInput=${(event) => setMinutes(Number(event.target.value))} /></label>
    <button type="button" onClick=${() => send(`Keep the workers of ${model} at ${workers} for ${minutes} minutes`, "/ui/scale", { model, workers, hold_s: minutes * 60 })}>Scale</button>
    <button type="button" onClick=${() => send(`End the fixed number of workers of ${model}`, "/ui/resume", { model })}>Back to policy</button>
    <button type="button" onClick=${() => send(`Replace all workers of ${model}, one after the other`, "/ui/reload", { models: [model] })}>Restart workers</button>
    <span class="spacer"></span>
    <button type="button" onClick=${() => (isPaused ? send("Resume scaling", "/ui/resume", {}) : send("Pause scaling", "/ui/pause", {}))}>${isPaused ? "Resume scaling" : "Pause scaling"}</button>
    </div>
    ${override && html`<p class="muted">${model} has a fixed number of ${override[0]} workers until ${moment(override[1])}.</p>`}
    ${answer && html`<p class=${answer.isError ? "bad" : "muted"} role="status">${answer.text}</p>`}
  </section>`;
}
