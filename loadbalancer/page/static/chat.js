// A conversation with a language model.

import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { events, request } from "./api.js";
import { Snippets } from "./snippets.js";

export function Chat({ model, keys }) {
  const [messages, setMessages] = useState([]), [typed, setTyped] = useState(""), [problem, setProblem] = useState("");
  const [form, setForm] = useState({ system: "", temperature: 0.7, max_tokens: 256 });
  const [isRunning, setRunning] = useState(false), running = useRef(null), end = useRef(null);
  useEffect(() => () => running.current?.abort(), []);
  useEffect(() => { end.current?.scrollIntoView({ block: "nearest" }); }, [messages]);
  const bodyFor = (list) => ({
    model: model.name,
    messages: [...(form.system ? [{ role: "system", content: form.system }] : []), ...list.map(({ role, content }) => ({ role, content }))],
    temperature: form.temperature,
    max_tokens: form.max_tokens,
  });
  const set = (name) => (event) => setForm({ ...form, [name]: event.target.type === "number" ? event.target.valueAsNumber : event.target.value });

  const send = async (event) => {
    event.preventDefault();
    const asked = [...messages, { role: "user", content: typed.trim() }], abort = new AbortController();
    running.current = abort;
    setMessages([...asked, { role: "assistant", content: "" }]);
    setTyped(""); setProblem(""); setRunning(true);
    const started = performance.now();
    let first = 0, answer = { role: "assistant", content: "", reasoning: "" };
    const show = (fields) => { answer = { ...answer, ...fields }; setMessages([...asked, answer]); };
    try {
      const body = { ...bodyFor(asked), stream: true, stream_options: { include_usage: true } };
      const response = await request("POST", "/v1/chat/completions", { body, signal: abort.signal });
      for await (const { data } of events(response)) {
        if (data?.error) throw new Error(data.error.message);
        const delta = data?.choices?.[0]?.delta;
        if (delta?.content || delta?.reasoning_content) {
          first ||= performance.now();
          show({ content: answer.content + (delta.content ?? ""), reasoning: answer.reasoning + (delta.reasoning_content ?? "") });
        }
        if (data?.usage) {
          const tokens = data.usage.completion_tokens, took = (performance.now() - first) / 1000;
          show({ note: `${tokens} tokens, first after ${Math.round(first - started)} ms${tokens > 1 ? `, ${((tokens - 1) / took).toFixed(1)} tokens/s` : ""}` });
        }
      }
    } catch (error) {
      if (abort.signal.aborted) show({ note: "stopped" });
      else { setProblem(error.message); setMessages(answer.content ? [...asked, answer] : asked); }
    } finally { setRunning(false); }
  };

  return html`<div class="columns">
    <section class="card form" aria-label="Settings">
      <label>Instructions <textarea rows="3" dir="auto" value=${form.system} onInput=${set("system")} placeholder="optional"></textarea></label>
      <div class="fields">
        <label>Temperature <input type="number" min="0" max="2" step="0.1" value=${form.temperature} onInput=${set("temperature")} /></label>
        <label>Tokens at most <input type="number" min="1" value=${form.max_tokens} onInput=${set("max_tokens")} /></label>
      </div>
      <button onClick=${() => setMessages([])} disabled=${isRunning || messages.length === 0}>New conversation</button>
      <${Snippets} path="/v1/chat/completions" body=${bodyFor(messages.length ? messages.filter(({ content }) => content) : [{ role: "user", content: typed || "What is 3 plus 4?" }])} keys=${keys} />
    </section>
    <section class="card chat" aria-label="Conversation">
      <div class="messages" tabindex="0" role="log">
        ${messages.map((each, index) => html`<article key=${index} class=${each.role}>
          <h4>${each.role === "user" ? "You" : model.name}</h4>
          ${each.reasoning && html`<details><summary>Reasoning</summary><p dir="auto">${each.reasoning}</p></details>`}
          <p dir="auto">${each.content || (isRunning && index === messages.length - 1 ? "…" : "")}</p>
          ${each.note && html`<p class="muted">${each.note}</p>`}</article>`)}
        ${messages.length === 0 && html`<p class="muted placeholder">Ask something.</p>`}
        <div ref=${end}></div>
      </div>
      ${problem && html`<p class="bad" role="alert">${problem}</p>`}
      <form class="ask" onSubmit=${send}>
        <label class="hidden" for="ask">Message</label>
        <textarea id="ask" rows="2" dir="auto" required value=${typed} onInput=${(event) => setTyped(event.target.value)}
          onKeyDown=${(event) => { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); if (typed.trim() && !isRunning) event.currentTarget.form.requestSubmit(); } }}></textarea>
        ${isRunning ? html`<button key="stop" type="button" onClick=${() => running.current.abort()}>Stop</button>` : html`<button key="send" class="primary" disabled=${!typed.trim()}>Send</button>`}
      </form>
    </section></div>`;
}
