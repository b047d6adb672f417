// The score curve as a drawing with numbers at its axes and a sentence for who cannot see it.
// @ts-check
/** @import { Report } from "./report.js" */

import { part, shape } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 92;
const LEFT = 44;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 30;
const ENOUGH = 2; // points that make a curve

/** The chart of a report's curve, or null where there is none. */
export function chartOf(/** @type {Report["curve"]} */ curve) {
  const found = describeCurve(curve);
  if (found === null) return null;
  const across = (/** @type {number} */ x) => LEFT + x * (WIDTH - LEFT - RIGHT);
  const up = (/** @type {number} */ y) => HEIGHT - BOTTOM - y * (HEIGHT - BOTTOM - TOP);
  const drawing = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": found.sentence });
  /** @type {(x: number, y: number, text: string, anchor: string) => Element} */
  const label = (x, y, text, anchor) => shape("text", { x, y, "text-anchor": anchor }, text);
  drawing.append(
    shape("title", {}, found.sentence),
    shape("path", { class: "memguard-axis", d: `M${LEFT} ${TOP}V${up(0)}H${WIDTH - RIGHT}` }),
    shape("polyline", { class: "memguard-curve", points: found.points.map(({ x, y }) => `${across(x)},${up(y)}`).join(" ") }),
    ...found.points.map(({ x, y }) => shape("circle", { class: "memguard-point", cx: across(x), cy: up(y), r: 2 })),
    label(LEFT - 4, up(1) + 4, found.values[1], "end"),
    label(LEFT - 4, up(0) + 4, found.values[0], "end"),
    label(LEFT, HEIGHT - 18, String(found.calls[0]), "middle"),
    label(WIDTH - RIGHT, HEIGHT - 18, String(found.calls[1]), "end"),
    label((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 5, "model call; upwards: RMS of the noise gap", "middle"),
  );
  const frame = part("div", "memguard-chart");
  frame.append(drawing);
  return frame;
}

/**
 * What the chart shows of [[sigma, rms], ...]: points in 0..1 (x to the right, y upwards), the numbers at the axes, and
 * a sentence that says the curve in words. null where there is no curve.
 */
export function describeCurve(/** @type {Report["curve"] | null} */ curve) {
  const calls = curve ?? [];
  const known = calls.flatMap(([, rms], call) => (typeof rms === "number" ? [{ call, rms }] : []));
  if (known.length < ENOUGH) return null;
  const last = calls.length - 1;
  const highest = known.reduce((best, point) => (point.rms > best.rms ? point : best));
  const lowest = known.reduce((best, point) => (point.rms < best.rms ? point : best));
  const top = highest.rms > 0 ? highest.rms : 1;
  return {
    points: known.map(({ call, rms }) => ({ x: call / last, y: Math.max(0, rms) / top })),
    calls: [1, calls.length],
    values: [0, top].map(short),
    sentence:
      `Noise gap over ${calls.length} model calls, RMS: starts at ${short(known[0].rms)}, ` +
      `highest ${short(highest.rms)} at call ${highest.call + 1}, lowest ${short(lowest.rms)} at call ${lowest.call + 1}, ` +
      `ends at ${short(known[known.length - 1].rms)}.`,
  };
}

function short(/** @type {number} */ value) {
  return String(Number(value.toPrecision(3)));
}
