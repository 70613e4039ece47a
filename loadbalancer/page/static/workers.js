// The tab "Workers and devices", with the commands of administrators.

import { html, useState } from "./vendor/preact.js";
import { postJson } from "./api.js";
import { bytes, clock, number, seconds } from "./format.js";

export function Workers({ state, session }) {
  const workers = Object.entries(state.workers).sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
  const devices = Object.entries(state.devices), machines = Object.entries(state.machines ?? {});
  const sensors = SENSORS.filter(({ field }) => devices.some(([, row]) => row[field] !== undefined));
  const [answer, setAnswer] = useState(null);
  const send = async (text, path, body) => {
    if (!confirm(`${text}?`)) return;
    setAnswer({ text: "Sent" });
    try {
      const { applied, rolling } = await postJson(path, body);
      const parts = [...applied, ...rolling.map((each) => `${each} is being replaced`)];
      setAnswer({ text: parts.join("; ") || "Done" });
    } catch (error) { setAnswer({ text: error.message, isError: true }); }
  };
  return html`<div class="bar"><h2>Workers and devices</h2></div>
    <${Commands} session=${session} state=${state} send=${send} answer=${answer} />
    <section class="card"><h3>Workers</h3>
      <div class="scroll" tabindex="0" role="region" aria-label="Workers"><table>
        <thead><tr>${["Worker", "Model", "Device", "State", "Tasks", "Batch", "Step", "Memory", "Done", "Failed", "Start", "Since", "Action"].map((each) => html`<th scope="col" key=${each}>${each}</th>`)}</tr></thead>
        <tbody>${workers.map(([name, row]) => html`<tr key=${name}>
          <th scope="row">${name}</th><td title=${row.model}>${row.model}</td><td>${row.device}</td>
          <td><span class=${`dot ${tone(row)}`}>${row.state ?? row.stage ?? "–"}</span>${row.outdated && html` <span class="muted" title=${row.outdated}>to be replaced</span>`}</td>
          <td class="num"><${Share} part=${(row.assigned ?? 0) + (row.running ?? 0)} whole=${row.slots} /></td>
          <td class="num">${number(row.batch)}</td><td class="num">${seconds(row.step_s)}</td>
          <td class="num"><${Memory} row=${row} device=${state.devices[row.device]} /></td>
          <td class="num">${number(row.finished)}</td><td class="num">${number(row.failed)}</td>
          <td class="num">${seconds(row.start_s)}</td><td class="num">${row.started ? clock(row.started) : "–"}</td>
          <td>${row.stage && row.stage !== "draining" && html`
            <button class="quiet" aria-label=${`Drain ${name}`} onClick=${() => send(`Let ${name} finish its tasks and end`, "/ui/drain", { worker: name })}>Drain</button>
            <button class="quiet" aria-label=${`Restart ${name}`} onClick=${() => send(`Replace ${name} by a new worker`, "/ui/restart", { worker: name })}>Restart</button>`}</td>
        </tr>`)}</tbody></table></div>
      ${workers.length === 0 && html`<p class="muted">No worker is connected.</p>`}
    </section>
    ${machines.length > 0 && html`<${Machines} machines=${machines} devices=${devices} />`}
    <section class="card"><h3>Devices</h3>
      <div class="scroll" tabindex="0" role="region" aria-label="Devices"><table>
        <thead><tr>${["Device", "Name", "Memory", ...sensors.map(({ title }) => title), "Workers", "Fault"].map((each) => html`<th scope="col" key=${each}>${each}</th>`)}</tr></thead>
        <tbody>${devices.map(([name, row]) => html`<tr key=${name}><th scope="row">${name}</th><td>${row.name}</td>
          <td class="num">${bytes(row.memory_bytes)}</td>
          ${sensors.map(({ field, show }) => html`<td class="num" key=${field}>${row[field] === undefined ? "–" : show(row[field])}</td>`)}
          <td class="wrap">${row.workers.join(", ") || "–"}</td><td class="wrap bad">${row.fault}</td></tr>`)}</tbody>
      </table></div></section>`;
}

// Shown where a driver tells them.
const SENSORS = [
  { field: "utilisation", title: "Busy", show: (value) => html`<meter min="0" max="1" value=${value} aria-label="busy"></meter> ${Math.round(100 * value)} %` },
  { field: "power_w", title: "Power", show: (value) => `${Math.round(value)} W` },
  { field: "temperature_c", title: "Temperature", show: (value) => `${Math.round(value)} °C` },
];

// The machine of a device: what stands before the slash; empty for the machine of the server.
const machineOf = (device) => device.slice(0, Math.max(device.lastIndexOf("/"), 0));

function Machines({ machines, devices }) {
  const rows = [["", { models: [] }], ...machines.sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }))];
  return html`<section class="card"><h3>Machines</h3>
    <div class="scroll" tabindex="0" role="region" aria-label="Machines"><table>
      <thead><tr>${["Machine", "Last report", "Devices", "In use", "Device memory", "Main memory", "Models at hand", "Not used because"].map((each) => html`<th scope="col" key=${each}>${each}</th>`)}</tr></thead>
      <tbody>${rows.map(([name, row]) => {
        const own = devices.filter(([device]) => machineOf(device) === name).map(([, each]) => each);
        const refused = Object.entries(row.unusable_models ?? {}).map(([model, reason]) => `${model}: ${reason}`);
        return html`<tr key=${name}><th scope="row">${name || "this server"}</th>
          <td>${row.last_report ? clock(row.last_report) : "now"}</td><td class="num">${own.length}</td>
          <td class="num">${own.filter(({ workers }) => workers.length > 0).length}</td>
          <td class="num">${bytes(own.reduce((sum, { memory_bytes: size }) => sum + (size ?? 0), 0))}</td>
          <td class="num">${row.memory_bytes ? `${bytes(row.available_bytes)} of ${bytes(row.memory_bytes)} free` : "–"}</td>
          <td>${name === "" ? "all" : row.models.join(", ") || "–"}</td>
          <td class="wrap bad">${[row.unused_reason, ...refused].filter(Boolean).join("; ")}</td></tr>`;
      })}</tbody></table></div></section>`;
}

const tone = (row) => ({ ready: "good", draining: "warn", silent: "bad", stuck: "bad" })[row.state] ?? "warn";

function Share({ part, whole }) {
  if (!whole) return html`${number(part)}`;
  return html`<meter min="0" max=${whole} value=${part} aria-label=${`${part} of ${whole} slots`}></meter> ${part}/${whole}`;
}

function Memory({ row, device }) {
  const whole = device?.memory_bytes;
  return html`${whole ? html`<meter min="0" max=${whole} value=${row.memory_bytes} aria-label="memory"></meter> ` : ""}${bytes(row.memory_bytes)}`;
}

function Commands({ session, state, send, answer }) {
  const [model, setModel] = useState(session.models[0].name), [workers, setWorkers] = useState(1), [minutes, setMinutes] = useState(15);
  const isPaused = Boolean(state.server.server?.paused_since);
  return html`<section class="card commands" aria-label="Commands">
    <label>Model <select value=${model} onChange=${(event) => setModel(event.target.value)}>
      ${session.models.map(({ name }) => html`<option key=${name} value=${name}>${name}</option>`)}</select></label>
    <label>Workers <input type="number" min="0" max="1000" value=${workers} onInput=${(event) => setWorkers(Number(event.target.value))} /></label>
    <label>for minutes <input type="number" min="1" max="43200" value=${minutes} onInput=${(event) => setMinutes(Number(event.target.value))} /></label>
    <button onClick=${() => send(`Run ${workers} workers of ${model} for ${minutes} minutes`, "/ui/scale", { model, workers, hold_s: minutes * 60 })}>Scale</button>
    <button onClick=${() => send(`End the fixed number of workers of ${model}`, "/ui/resume", { model })}>Back to policy</button>
    <button onClick=${() => send(`Replace all workers of ${model}, one after the other`, "/ui/reload", { models: [model] })}>Restart workers</button>
    <span class="spacer"></span>
    <button onClick=${() => (isPaused ? send("Resume scaling", "/ui/resume", {}) : send("Pause scaling", "/ui/pause", {}))}>${isPaused ? "Resume scaling" : "Pause scaling"}</button>
    ${answer && html`<p class=${answer.isError ? "bad" : "muted"} role="status">${answer.text}</p>`}
  </section>`;
}
