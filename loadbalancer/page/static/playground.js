// The tab "Playground": try every model, and copy the request.

import { html, useState } from "./vendor/preact.js";
import { Images } from "./images.js";
import { Chat } from "./chat.js";
import { Calls } from "./calls.js";

const VIEWS = { image: Images, text: Chat, call: Calls };

export function Playground({ session }) {
  const scopes = { image: "images", text: "text", call: "calls" };
  const models = session.models.filter(({ task }) => session.scopes.includes(scopes[task]));
  const [name, setName] = useState(models[0]?.name);
  const model = models.find((each) => each.name === name);
  if (!model) return html`<p class="notice">This key may use no model.</p>`;
  const View = VIEWS[model.task];
  return html`<div class="bar"><h2>Playground</h2>
      <label>Model <select value=${name} onChange=${(event) => setName(event.target.value)}>
        ${models.map((each) => html`<option key=${each.name} value=${each.name}>${each.name} (${each.task})</option>`)}</select></label>
    </div>
    <${View} key=${name} model=${model} keys=${session.keys} />`;
}
