// The tab "Workers and devices", with the commands of administrators.

import { html, useState } from "./vendor/preact.js";
import { postJson } from "./api.js";
import { Commands } from "./commands.js";
import { bytes, moment, number, seconds } from "./format.js";
import { Table } from "./table.js";

export function Workers({ state, session }) {
  const workers = Object.entries(state.workers).sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true }));
  const devices = Object.entries(state.devices), machines = Object.entries(state.machines ?? {});
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
      ${workers.length === 0 && html`<p class="muted">No worker is connected. <a href="#now">Now</a> shows why there are none.</p>`}
      ${workers.length > 0 && html`<${Table} label="Workers" columns=${WORKER_COLUMNS}>${workers.map(([name, row]) => html`<tr key=${name}>
          <th scope="row">${name}</th>
          <td><span class=${`dot ${tone(row)}`}>${row.state ?? row.stage ?? "–"}</span>${row.outdated && html` <span class="muted" title=${row.outdated}>to be replaced</span>`}</td>
          <td title=${row.model}>${row.model}</td><td>${row.device}</td>
          <td class="num start"><${Share} part=${(row.assigned ?? 0) + (row.running ?? 0)} whole=${row.slots} /></td>
          <td class="num">${row.batch ? number(row.batch) : "–"}</td><td class="num">${row.step_s ? seconds(row.step_s) : "–"}</td>
          <td class="num"><${Memory} row=${row} device=${state.devices[row.device]} /></td>
          <td class="num">${number(row.finished)}</td><td class=${row.failed > 0 ? "num bad" : "num"}>${number(row.failed)}</td>
          <td class="num wide">${seconds(row.start_s)}</td><td class="num wide">${row.started ? moment(row.started) : "–"}</td>
          <td>${row.stage && row.stage !== "draining" && html`
            <button type="button" class="quiet" aria-label=${`Drain ${name}`} onClick=${() => send(`Let ${name} finish its tasks and end`, "/ui/drain", { worker: name })}>Drain</button>
            <button type="button" class="quiet" aria-label=${`Restart ${name}`} onClick=${() => send(`Replace ${name} by a new worker`, "/ui/restart", { worker: name })}>Restart</button>`}</td>
        </tr>`)}<//>`}
    </section>
    ${machines.length > 0 && html`<${Machines} machines=${machines} devices=${devices} />`}
    <${Devices} devices=${devices} />`;
}

const WORKER_COLUMNS = ["Worker", "State", "Model", "Device", "Tasks", "#Batch", "#Step", "#Memory", "#Done", "#Failed", "#Start~", "#Since~", "Action"];

// Only columns that say something; devices of which nothing is known but their names are counted.
function Devices({ devices }) {
  const has = (field) => devices.some(([, row]) => row[field]), sensors = SENSORS.filter(({ field }) => devices.some(([, row]) => row[field] !== undefined));
  const isPlain = ([, row]) => row.workers.length === 0 && !row.fault && !row.name && !row.memory_bytes;
  const plain = devices.filter(isPlain).length;
  const columns = ["Device", ...(has("name") ? ["Name"] : []), ...(has("memory_bytes") ? ["#Memory"] : []), ...sensors.map(({ title }) => title), "Workers", ...(has("fault") ? ["Fault"] : [])];
  return html`<section class="card"><h3>Devices</h3>
    ${devices.length === 0 && html`<p class="muted">No controller has reported its devices.</p>`}
    ${plain < devices.length && html`<${Table} label="Devices" columns=${columns}>${devices.filter((each) => !isPlain(each)).map(([name, row]) => html`<tr key=${name}><th scope="row">${name}</th>
      ${has("name") && html`<td>${row.name || "–"}</td>`}${has("memory_bytes") && html`<td class="num">${bytes(row.memory_bytes)}</td>`}
      ${sensors.map(({ field, show }) => html`<td class="num start" key=${field}>${row[field] === undefined ? "–" : show(row[field])}</td>`)}
      <td class="wrap">${row.workers.join(", ") || html`<span class="muted">free</span>`}</td>${has("fault") && html`<td class="wrap bad">${row.fault}</td>`}</tr>`)}<//>`}
    ${plain > 0 && html`<p class="muted">${plain} of ${devices.length} devices are free.</p>`}
  </section>`;
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
    <${Table} label="Machines" columns=${["Machine", "Last report", "#Devices", "#In use", "#Device memory", "#Main memory", "Models at hand", "Not used because"]}>
      ${rows.map(([name, row]) => {
        const own = devices.filter(([device]) => machineOf(device) === name).map(([, each]) => each);
        const refused = Object.entries(row.unusable_models ?? {}).map(([model, reason]) => `${model}: ${reason}`);
        return html`<tr key=${name}><th scope="row">${name || "this server"}</th>
          <td>${row.has_reported === false ? "none" : row.last_report ? moment(row.last_report) : "now"}</td><td class="num">${own.length}</td>
          <td class="num">${own.filter(({ workers }) => workers.length > 0).length}</td>
          <td class="num">${bytes(own.reduce((sum, { memory_bytes: size }) => sum + (size ?? 0), 0))}</td>
          <td class="num">${row.memory_bytes ? `${bytes(row.available_bytes)} of ${bytes(row.memory_bytes)} free` : "–"}</td>
          <td>${name === "" ? "all" : row.models.join(", ") || "–"}</td>
          <td class="wrap bad">${[row.unused_reason, ...refused].filter(Boolean).join("; ")}</td></tr>`;
      })}<//></section>`;
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
