// A mask drawn over an image. As in OpenAI's API, transparent parts of the mask are repainted.

import { html, useEffect, useRef, useState } from "./vendor/preact.js";

export function Mask({ source, mask }) {
  const canvas = useRef(null), image = useRef(null), isDrawing = useRef(false), isEmpty = useRef(true), [size, setSize] = useState(24);
  useEffect(() => {
    const loaded = new Image();
    loaded.onload = () => {
      image.current = loaded;
      canvas.current.width = loaded.naturalWidth;
      canvas.current.height = loaded.naturalHeight;
      clear();
    };
    loaded.src = source;
    mask.current = () => (isEmpty.current ? null : new Promise((resolve) => inverted(canvas.current).toBlob(resolve, "image/png")));
    return () => { mask.current = null; };
  }, [source]);
  const clear = () => {
    isEmpty.current = true;
    const { width, height } = canvas.current;
    canvas.current.getContext("2d").clearRect(0, 0, width, height);
  };
  const paint = (event) => {
    if (!isDrawing.current) return;
    const box = canvas.current.getBoundingClientRect(), scale = canvas.current.width / box.width, context = canvas.current.getContext("2d");
    context.fillStyle = "#e0457b";
    context.beginPath();
    context.arc((event.clientX - box.left) * scale, (event.clientY - box.top) * scale, (size / 100) * canvas.current.width / 2, 0, 2 * Math.PI);
    context.fill();
    isEmpty.current = false;
  };
  // For keyboards: the middle half of the image.
  const middle = () => {
    const { width, height } = canvas.current, context = canvas.current.getContext("2d");
    context.fillStyle = "#e0457b";
    context.fillRect(width / 4, height / 4, width / 2, height / 2);
    isEmpty.current = false;
  };
  const begin = (event) => { isDrawing.current = true; canvas.current.setPointerCapture(event.pointerId); paint(event); };
  return html`<div class="mask">
    <div class="stack"><img src=${source} alt="The image to change" /><canvas ref=${canvas} aria-label="Mask: draw over what is to be repainted"
      onPointerDown=${begin} onPointerMove=${paint} onPointerUp=${() => { isDrawing.current = false; }}></canvas></div>
    <div class="bar"><label>Brush <input type="range" min="4" max="60" value=${size} onInput=${(event) => setSize(Number(event.target.value))} /></label>
      <button type="button" class="quiet" onClick=${middle}>Middle</button><button type="button" class="quiet" onClick=${clear}>Clear the mask</button></div>
    <p class="muted">Draw over what is to be repainted. Without a mask, the whole image changes.</p></div>`;
}

// Painted parts become transparent, the others opaque.
function inverted(painted) {
  const result = document.createElement("canvas");
  result.width = painted.width;
  result.height = painted.height;
  const context = result.getContext("2d");
  context.fillStyle = "#000";
  context.fillRect(0, 0, result.width, result.height);
  context.globalCompositeOperation = "destination-out";
  context.drawImage(painted, 0, 0);
  return result;
}
