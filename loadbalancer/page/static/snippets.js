// The request as commands and programs to copy.

import { html, useState } from "./vendor/preact.js";
import { CopyButton } from "./copy.js";

const LANGUAGES = ["curl", "Python", "JavaScript"];
const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function snippet(language, path, body, keys) {
  const url = location.origin + path, json = JSON.stringify(body, null, 2);
  if (language === "curl") {
    const auth = keys ? ` \\\n  -H "authorization: Bearer $MUSTER_API_KEY"` : "";
    return `curl ${url} \\\n  -H "content-type: application/json"${auth} \\\n  -d ${quoted(JSON.stringify(body))}`;
  }
  if (language === "Python") {
    const auth = keys ? `, headers={"authorization": f"Bearer {os.environ['MUSTER_API_KEY']}"}` : "";
    return `import json${keys ? ", os" : ""}\nimport httpx\n\nbody = json.loads(r'''${json}''')\nresponse = httpx.post("${url}", json=body${auth}, timeout=None)\nresponse.raise_for_status()\nprint(response.json())`;
  }
  const auth = keys ? `, authorization: \`Bearer \${process.env.MUSTER_API_KEY}\`` : "";
  return `const response = await fetch("${url}", {\n  method: "POST",\n  headers: { "content-type": "application/json"${auth} },\n  body: JSON.stringify(${json.replaceAll("\n", "\n  ")}),\n});\nconsole.log(await response.json());`;
}

export function Snippets({ path, body, keys }) {
  const [language, setLanguage] = useState("curl"), text = snippet(language, path, body, keys);
  return html`<details class="snippets"><summary>The request as a command</summary>
    <div class="bar"><span class="choices" role="group" aria-label="Language">
      ${LANGUAGES.map((each) => html`<button type="button" key=${each} aria-pressed=${each === language} onClick=${() => setLanguage(each)}>${each}</button>`)}</span>
      <${CopyButton} text=${text} /></div>
    <pre tabindex="0" aria-label="The request"><code>${text}</code></pre></details>`;
}
