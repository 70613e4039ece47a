// The page: who is looking, the live state, and the tabs.

import { html, render, useEffect, useMemo, useRef, useState } from "./vendor/preact.js";
import { ApiError, getJson, hasKey, setKey } from "./api.js";
import { clock } from "./format.js";
import { watch } from "./live.js";
import { Now } from "./now.js";
import { Playground } from "./playground.js";
import { Queue } from "./queue.js";
import { Workers } from "./workers.js";
import { Keys } from "./keys.js";
import { Simulator } from "./simulator.js";

const TABS = [
  { id: "now", title: "Now", view: Now, admin: true },
  { id: "playground", title: "Playground", view: Playground },
  { id: "queue", title: "Queue and jobs", view: Queue },
  { id: "workers", title: "Workers and devices", view: Workers, admin: true },
  { id: "simulator", title: "Simulator", view: Simulator, admin: true },
  { id: "keys", title: "Access", view: Keys },
];

// Tells the newest points to those charts that are shown.
class Points {
  listeners = new Set();
  listen(listener) {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }
  tell(latest) { for (const listener of this.listeners) listener(latest); }
}

function App() {
  const [session, setSession] = useState(null), [problem, setProblem] = useState(null);
  const [state, setState] = useState(null), [lost, setLost] = useState(null), points = useMemo(() => new Points(), []);
  const [tab, setTab] = useTab();
  const refuse = (error) => { setSession(null); setProblem(error); };
  const enter = () => getJson("/ui/session").then((found) => { setSession(found); setProblem(null); }, refuse);
  // Of a server that was gone, models and keys may be others.
  const enterAgain = () => getJson("/ui/session").then(setSession, (error) => { if (error.status) refuse(error); });
  useEffect(() => { enter(); }, []);
  const isAdmin = session?.scopes.includes("admin") ?? false;
  useEffect(() => {
    if (!isAdmin) return undefined;
    const onLost = (time, reason) => setLost(time && { time, reason });
    return watch({ onState: setState, onPoints: (latest) => points.tell(latest), onLost, onError: refuse });
  }, [isAdmin]);
  const { connection } = state ?? {}, first = useRef(null), isPlayed = useRef(false);
  useEffect(() => {
    if (first.current && connection) enterAgain();
    first.current = connection;
  }, [connection]);
  if (!session) return html`<${Entrance} problem=${problem} onKey=${(key) => { setKey(key); return enter(); }} />`;
  const shown = TABS.filter((each) => isAdmin || !each.admin);
  const current = shown.find((each) => each.id === tab) ?? shown[0];
  // Once opened it stays: what runs goes on while another tab is looked at.
  if (current.view === Playground) isPlayed.current = true;
  const isWaiting = current.admin && !state;
  document.title = `${lost ? "Not connected – " : ""}${current.title} – Muster`;
  return html`
    <header class="top">
      <h1>Muster</h1>
      <nav role="tablist" aria-label="Parts of the page" onKeyDown=${(event) => moveFocus(event, shown)}>
        ${shown.map((each) => html`<a key=${each.id} id=${`tab-${each.id}`} role="tab" href=${`#${each.id}`} aria-controls="content"
          aria-selected=${each === current} tabindex=${each === current ? 0 : -1} onClick=${() => setTab(each.id)}>${each.title}</a>`)}
      </nav>
      <span class="spacer"></span>
      ${isAdmin && html`<span class=${lost ? "dot bad" : "dot good"} role="status">${lost ? "not connected" : state ? "live" : "connecting"}</span>`}
      <a href="/docs">API</a>
      <${Theme} />
      ${lost && html`<p class="lost" role="alert"><strong>No connection to the server:</strong> ${lost.reason}.
        ${state ? ` What you see is from ${clock(lost.time)}.` : ""} The page connects again by itself.</p>`}
    </header>
    <main><div id="content" role="tabpanel" aria-labelledby=${`tab-${current.id}`}>
      ${isWaiting ? html`<p class="loading" role="status">Waiting for the server</p>`
        : current.view !== Playground && html`<${current.view} key=${current.id} session=${session} state=${state} points=${points} isAdmin=${isAdmin} />`}
      ${isPlayed.current && html`<div key="playground" hidden=${current.view !== Playground}><${Playground} session=${session} /></div>`}
    </div></main>`;
}

// Arrows, Home and End move among the tabs, Enter opens one.
function moveFocus(event, shown) {
  const at = shown.findIndex(({ id }) => event.target.id === `tab-${id}`), last = shown.length - 1;
  const to = { ArrowRight: at < last ? at + 1 : 0, ArrowLeft: at > 0 ? at - 1 : last, Home: 0, End: last }[event.key];
  if (at < 0 || to === undefined) return;
  event.preventDefault();
  document.getElementById(`tab-${shown[to].id}`).focus();
}

function useTab() {
  const [tab, setTab] = useState(location.hash.slice(1) || "now");
  useEffect(() => {
    const changed = () => setTab(location.hash.slice(1) || "now");
    addEventListener("hashchange", changed);
    return () => removeEventListener("hashchange", changed);
  }, []);
  // On a phone the tabs do not fit beside each other.
  useEffect(() => { document.getElementById(`tab-${tab}`)?.scrollIntoView({ inline: "center", block: "nearest" }); });
  return [tab, setTab];
}

function Entrance({ problem, onKey }) {
  const [key, setTyped] = useState(""), field = useRef(null);
  useEffect(() => { field.current?.select(); }, [problem]);
  if (!problem) return html`<p class="loading" role="status">Muster</p>`;
  const needsKey = problem instanceof ApiError && (problem.status === 401 || problem.status === 403);
  // Without a key there is no mistake yet.
  const isRefused = hasKey() || problem.status !== 401;
  return html`<main class="entrance"><form class="card" onSubmit=${(event) => { event.preventDefault(); onKey(key); }}>
    <h1>Muster</h1>
    ${needsKey ? html`
      <p>This server asks for an API key. Its administrator makes one with <code>scripts/keys add NAME</code>; with <code>--scope admin</code> it shows everything.</p>
      <label for="key">API key</label>
      <input id="key" ref=${field} type="password" autocomplete="off" spellcheck=${false} value=${key} onInput=${(event) => setTyped(event.target.value)}
        aria-invalid=${isRefused} aria-describedby="refused" autofocus />
      <div id="refused">${isRefused && html`<p class="fault" role="alert">${problem.message}</p>`}</div>
      <p class="muted">It stays in the memory of this tab, and is gone when the tab closes or is reloaded.</p>
      <button class="primary" disabled=${!key.trim()}>Enter</button>`
    : html`<p class="fault" role="alert">${problem.status ? problem.message : "The server does not answer. Is it running, and is the address right?"}</p><button class="primary">Try again</button>`}
  </form></main>`;
}

function Theme() {
  const [theme, setTheme] = useState(localStorage.getItem("muster.theme") ?? "");
  useEffect(() => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    localStorage.setItem("muster.theme", theme);
  }, [theme]);
  const next = { "": "dark", dark: "light", light: "" }[theme];
  return html`<button type="button" class="quiet" onClick=${() => setTheme(next)}>Theme: ${theme || "auto"}</button>`;
}

render(html`<${App} />`, document.getElementById("app"));
