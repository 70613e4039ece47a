// A button that copies a text.

import { html, useState } from "./vendor/preact.js";

const SHOWN_MS = 1500;

export function CopyButton({ text }) {
  const [word, setWord] = useState("Copy");
  const copy = async () => {
    setWord((await isCopied(text)) ? "Copied" : "Not allowed: select the text");
    setTimeout(() => setWord("Copy"), SHOWN_MS);
  };
  return html`<button type="button" onClick=${copy}>${word}</button>`;
}

async function isCopied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { /* without TLS, browsers have a clipboard on loopback only */ }
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "hidden";
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  return copied;
}
