// A picture of the playground: its progress and previews, then the image itself.

import { html } from "./vendor/preact.js";
import { seconds } from "./format.js";

export function Picture({ image, index, model, onEdit }) {
  const isDone = image.state === "done";
  return html`<figure class="picture">
    ${image.url ? html`<img src=${image.url} class=${image.isPreview ? "preview" : ""} alt=${isDone ? `Image ${index + 1}` : `Preview of image ${index + 1}`} />` : html`<div class="empty"></div>`}
    <figcaption class="num">
      ${isDone ? html`<span>seed ${image.seed}, waited ${seconds(image.timings.queued_s ?? image.timings.waited_s)}, ran ${seconds(image.timings.running_s ?? image.timings.ran_s)}</span>
          <span class="spacer"></span>${onEdit && html`<button type="button" class="quiet" onClick=${onEdit}>Edit</button>`}
          <a href=${image.url} download=${`${model.replace(/[^\w.-]+/g, "-")}-${image.seed}.${image.format}`} aria-label=${`Save image ${index + 1}`}>Save</a>`
        : image.state === "stopped" ? html`<span>stopped at step ${image.step} of ${image.steps}</span>`
        : html`<progress max=${image.steps || 1} value=${image.step} aria-label=${`Progress of image ${index + 1}`}></progress> <span>${progress(image)}</span>`}
    </figcaption></figure>`;
}

function progress({ state, position, step, steps, eta_s: eta }) {
  const words = state === "queued" ? `place ${position + 1} in the queue` : steps ? `step ${step} of ${steps}` : state;
  return eta === null || eta === undefined ? words : `${words}, ready in ${seconds(eta)}`;
}

// The image of an event, as a blob with a URL of this tab.
export function received(data) {
  const bytes = Uint8Array.from(atob(data.b64_json), (each) => each.charCodeAt(0));
  const blob = new Blob([bytes], { type: `image/${data.output_format}` });
  return { blob, url: URL.createObjectURL(blob), format: data.output_format };
}
