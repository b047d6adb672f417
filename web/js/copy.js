// "Copy JSON": the report as text in the clipboard, also where the page is not served over https.

import { button } from "./dom.js";

const CONFIRMED = 2500; // ms that the button says so

/** A button that copies what `text` returns, and says whether it did. */
export function copyButton(text) {
  const element = button("Copy JSON", async () => {
    element.textContent = (await copy(text())) ? "✓ Copied" : "Not copied: the browser refused";
    setTimeout(() => (element.textContent = "Copy JSON"), CONFIRMED);
  });
  element.setAttribute("aria-live", "polite");
  return element;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copySelected(text); // no clipboard on plain http, or not allowed
  }
}

function copySelected(text) {
  const focused = document.activeElement;
  const area = document.createElement("textarea");
  area.value = text;
  area.style.position = "fixed";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return done;
}
