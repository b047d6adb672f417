// Whether ComfyUI's page is light or dark. Frontends mark that in ways of their own; the ground of panels is one colour.

import { luminance } from "./colours.js";

const PALETTE = "Comfy.ColorPalette.change";
const SOON = 200; // ms until the colours are those of the new palette
const MIDDLE = 0.18; // of the luminance, where black and white letters are read alike

/** Whether the ground of panels is light. */
export function isLight() {
  const probe = document.createElement("div");
  probe.style.backgroundColor = "var(--comfy-input-bg, #222)";
  (document.getElementById("vue-app") ?? document.body).append(probe);
  const colour = getComputedStyle(probe).backgroundColor.match(/[\d.]+/g) ?? [];
  probe.remove();
  return colour.length >= 3 && luminance(colour.slice(0, 3).map(Number)) > MIDDLE;
}

/** Call a function when the page has got other colours. `settings` are those of ComfyUI, which tell of changes. */
export function onTheme(settings, act) {
  settings?.addEventListener?.(PALETTE, () => setTimeout(act, SOON));
}
