// The words of an attribution as the page shows them: one chip each. No DOM, no ComfyUI, so that node can test it.

// the ramp of memguard/overlay.py: even steps of lightness and hue in OKLab
const LIGHTNESS = [0.28, 0.96];
const HUE = [285, 95];
const CHROMA = 0.11;
const NAMES = { bos: "[BOS]", eos: "[EOS]", padding: "[padding]", pooled: "[pooled]" };
const IDS = 8; // token ids that a title names; padding has dozens

/** The colour of a share 0..1, [r, g, b] in 0..255. */
export function ramp(share) {
  const t = Math.min(1, Math.max(0, share));
  const lightness = LIGHTNESS[0] + (LIGHTNESS[1] - LIGHTNESS[0]) * t;
  const angle = ((HUE[0] + (HUE[1] - HUE[0]) * t) * Math.PI) / 180;
  const a = CHROMA * Math.cos(angle);
  const b = CHROMA * Math.sin(angle);
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  return [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ].map(encode);
}

/** The colour of letters that can be read on a background. */
export function ink([r, g, b]) {
  const linear = [r, g, b].map((value) => (value / 255) ** 2.2);
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.18 ? "black" : "white";
}

/** One chip per span: its word, its weight as text, its colours, and a title that says everything. */
export function chips(attribution) {
  const { spans, weights } = attribution;
  const low = Math.min(0, ...weights);
  const range = Math.max(...weights) - low || 1;
  return spans.map((span, index) => {
    const background = ramp((weights[index] - low) / range);
    const word = span.text || NAMES[span.group];
    const weight = Number(weights[index].toPrecision(3));
    return { word, weight: String(weight), background: `rgb(${background})`, colour: ink(background), title: title(span, word, weight) };
  });
}

/** What stands below the chips: what the weights are, or why there are none, and the notes. */
export function lines(attribution) {
  if (attribution.status !== "ok") return [`No attribution: ${attribution.status}`];
  return [`${attribution.method}: ${attribution.unit}`, ...attribution.notes];
}

function title(span, word, weight) {
  const parts = [`${word}: ${weight}`];
  const more = span.ids.length > IDS ? " …" : "";
  if (span.ids.length > 0) parts.push(`token ${span.ids.slice(0, IDS).join(" ")}${more}`);
  if (span.emphasis !== 1) parts.push(`emphasis ${span.emphasis}`);
  if (span.group === "word" && span.columns.length === 0) parts.push("cut off, the model never sees it");
  return parts.join(", ");
}

function encode(linear) {
  const value = Math.min(1, Math.max(0, linear));
  return Math.round(255 * (value <= 0.0031308 ? 12.92 * value : 1.055 * value ** (1 / 2.4) - 0.055));
}
