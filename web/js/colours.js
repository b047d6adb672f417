// The colours of numbers, for chips and maps alike, and whether the page they stand on is light or dark.
// Lightness rises evenly with the number in every palette, so order never hangs on hue alone.
// @ts-check
/** @import { Colour, Palette } from "./types.js" */

// OKLab; "colour" is the ramp of memguard/overlay.py
const LIGHTNESS = [0.28, 0.96];
const HUE = [285, 95];
const CHROMA = { colour: 0.11, grey: 0 };

const REPAINTED = "Comfy.ColorPalette.change";
const SOON = 200; // ms until the colours are those of the new palette
const MIDDLE = 0.18; // of the luminance, where black and white letters are read alike

export const PALETTES = /** @type {Palette[]} */ (Object.keys(CHROMA));

/** The colour of a share 0..1, [r, g, b] in 0..255. */
export function ramp(/** @type {number} */ share, /** @type {Palette} */ palette = "colour") {
  const t = Math.min(1, Math.max(0, share));
  const chroma = CHROMA[palette] ?? CHROMA.colour;
  const lightness = LIGHTNESS[0] + (LIGHTNESS[1] - LIGHTNESS[0]) * t;
  const angle = ((HUE[0] + (HUE[1] - HUE[0]) * t) * Math.PI) / 180;
  const a = chroma * Math.cos(angle);
  const b = chroma * Math.sin(angle);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map(encode);
}

/** The colour of letters that can be read on a background: the one with the larger contrast, 4.5 at least. */
export function ink(/** @type {Colour} */ background) {
  const light = luminance(background) + 0.05;
  return light / 0.05 >= 1.05 / light ? "black" : "white";
}

/** The relative luminance of a colour, as WCAG defines it. */
export function luminance(/** @type {Colour} */ colour) {
  const [r, g, b] = colour.map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** The ramp as a CSS background, low on the left. */
export function gradient(/** @type {Palette} */ palette) {
  const stops = [0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1];
  return `linear-gradient(to right, ${stops.map((share) => `rgb(${ramp(share, palette)})`).join(", ")})`;
}

function encode(/** @type {number} */ linear) {
  const value = Math.min(1, Math.max(0, linear));
  return Math.round(255 * (value <= 0.0031308 ? 12.92 * value : 1.055 * value ** (1 / 2.4) - 0.055));
}

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
export function onTheme(/** @type {EventTarget | undefined} */ settings, /** @type {() => void} */ act) {
  settings?.addEventListener?.(REPAINTED, () => setTimeout(act, SOON));
}
