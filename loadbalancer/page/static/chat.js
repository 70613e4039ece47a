// A conversation with a language model.

import { html, useEffect, useRef, useState } from "./vendor/preact.js";
import { events, request } from "./api.js";
import { Fault, Field, typedValue } from "./fault.js";
import { useKept } from "./history.js";
import { Snippets } from "./snippets.js";

const FIELDS = ["temperature", "max_tokens"];

export function Chat({ model, keys }) {
  const [messages, setMessages] = useKept(`messages.${model.name}`, []), [typed, setTyped] = useState(""), [problem, setProblem] = useState(null);
  const [form, setForm] = useKept(`chat.${model.name}`, { system: "", temperature: 0.7, max_tokens: 256 });
  const [isRunning, setRunning] = useState(false), running = useRef(null), log = useRef(null), isAtEnd = useRef(true);
  useEffect(() => () => running.current?.abort(), []);
  // Who reads further up is left there.
  useEffect(() => { if (isAtEnd.current) log.current.scrollTop = log.current.scrollHeight; }, [messages]);
  const scrolled = ({ currentTarget: box }) => { isAtEnd.current = box.scrollHeight - box.scrollTop - box.clientHeight < 60; };
  const bodyFor = (list) => ({
    model: model.name,
    messages: [...(form.system ? [{ role: "system", content: form.system }] : []), ...list.map(({ role, content }) => ({ role, content }))],
    ...Object.fromEntries(FIELDS.filter((name) => Number.isFinite(form[name])).map((name) => [name, form[name]])),
  });
  const set = (name) => (event) => {
    setForm({ ...form, [name]: typedValue(event) });
    if (problem?.param === name) setProblem(null);
  };
  const field = (param) => ({ param, problem, type: "number", value: form[param], set: set(param) });

  const send = async (event) => {
    event.preventDefault();
    const text = typed.trim(), asked = [...messages, { role: "user", content: text }], abort = new AbortController();
    running.current = abort;
    setMessages([...asked, { role: "assistant", content: "" }]);
    isAtEnd.current = true;
    setTyped(""); setProblem(null); setRunning(true);
    const started = performance.now();
    let first = 0, answer = { role: "assistant", content: "", reasoning: "" };
    const show = (fields) => { answer = { ...answer, ...fields }; setMessages([...asked, answer]); };
    try {
      const body = { ...bodyFor(asked), stream: true, stream_options: { include_usage: true } };
      const response = await request("POST", "/v1/chat/completions", { body, signal: abort.signal });
      for await (const { data } of events(response)) {
        if (data?.error) throw data.error;
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
      else {
        setProblem(error);
        if (answer.content) show({ note: "broken off" });
        else { setMessages(messages); setTyped(text); }
      }
    } finally { setRunning(false); }
  };

  return html`<div class="columns">
    <section class="card form" aria-label="Settings">
      <label>Instructions <textarea rows="3" dir="auto" value=${form.system} onInput=${set("system")} placeholder="optional"></textarea></label>
      <div class="fields">
        <${Field} name="Temperature" min="0" max="2" step="any" ...${field("temperature")} placeholder="default" />
        <${Field} name="Tokens at most" min="1" ...${field("max_tokens")} placeholder="no limit" />
      </div>
      <button type="button" onClick=${() => { setMessages([]); setProblem(null); }} disabled=${isRunning || messages.length === 0}>New conversation</button>
      <${Snippets} path="/v1/chat/completions" body=${bodyFor(messages.length ? messages.filter(({ content }) => content) : [{ role: "user", content: typed || "What is 3 plus 4?" }])} keys=${keys} />
    </section>
    <section class="card chat" aria-label="Conversation">
      <div class="messages" tabindex="0" role="log" aria-label="Messages" aria-busy=${isRunning} ref=${log} onScroll=${scrolled}>
        ${messages.map((each, index) => html`<article key=${index} class=${each.role}>
          <h4>${each.role === "user" ? "You" : model.name}</h4>
          ${each.reasoning && html`<details><summary>Reasoning</summary><p dir="auto">${each.reasoning}</p></details>`}
          <p dir="auto">${each.content || (isRunning && index === messages.length - 1 ? "…" : "")}</p>
          ${each.note && html`<p class="muted">${each.note}</p>`}</article>`)}
        ${messages.length === 0 && html`<p class="muted placeholder">Ask something.</p>`}
      </div>
      <${Fault} problem=${problem} known=${FIELDS} />
      <form class="ask" onSubmit=${send}>
        <textarea aria-label="Message" placeholder="Enter sends, Shift and Enter begin a line" rows="2" dir="auto" required value=${typed} onInput=${(event) => setTyped(event.target.value)}
          onKeyDown=${(event) => { if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); if (typed.trim() && !isRunning) event.currentTarget.form.requestSubmit(); } }}></textarea>
        ${isRunning ? html`<button key="stop" type="button" onClick=${() => running.current.abort()}>Stop</button>` : html`<button key="send" class="primary" disabled=${!typed.trim()}>Send</button>`}
      </form>
    </section></div>`;
}
