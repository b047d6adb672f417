// Whether ComfyUI's page is light or dark. A dark one is marked by a class; on which element is the frontend's affair.

const DARK = ".dark-theme";
const PALETTE = "Comfy.ColorPalette.change";
const SOON = 200; // ms until the colours are those of the new palette

/** Whether the ground of panels is light. */
export function isLight() {
  return document.querySelector(DARK) === null;
}

/** Call a function when the page has got other colours. `settings` are those of ComfyUI, which tell of changes. */
export function onTheme(settings, act) {
  settings?.addEventListener?.(PALETTE, () => setTimeout(act, SOON));
}
