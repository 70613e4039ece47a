// The tab "Playground": try every model, and copy the request.

import { html, useState } from "./vendor/preact.js";
import { Images } from "./images.js";
import { Chat } from "./chat.js";
import { Calls } from "./calls.js";
import { useKept } from "./history.js";

const VIEWS = { image: Images, text: Chat, call: Calls };
const SCOPES = { image: "images", text: "text", call: "calls" };

export function Playground({ session }) {
  const models = session.models.filter(({ task }) => session.scopes.includes(SCOPES[task]));
  const [chosen, setName] = useKept("model", null), [opened, setOpened] = useState([]);
  const name = models.some((each) => each.name === chosen) ? chosen : models[0]?.name;
  if (!name) return html`<h2>Playground</h2><p class="notice">This key may use no model. Its scopes are: ${session.scopes.join(", ") || "none"}.</p>`;
  // A model that was opened stays: what runs goes on while another one is looked at.
  if (!opened.includes(name)) setOpened([...opened, name]);
  const shown = models.filter((each) => each.name === name || opened.includes(each.name));
  return html`<div class="bar"><h2>Playground</h2>
      <label>Model <select value=${name} onChange=${(event) => setName(event.target.value)}>
        ${models.map((each) => html`<option key=${each.name} value=${each.name}>${each.name} (${each.task})</option>`)}</select></label>
    </div>
    ${shown.map((model) => html`<div key=${model.name} hidden=${model.name !== name}>
      <${VIEWS[model.task]} model=${model} keys=${session.keys} samplers=${session.samplers} /></div>`)}`;
}
