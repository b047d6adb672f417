// The score curve as a drawing with numbers at its axes and a sentence for who cannot see it.

import { describeCurve } from "./curve.js";
import { part, shape } from "./dom.js";

const WIDTH = 300;
const HEIGHT = 92;
const LEFT = 44;
const RIGHT = 8;
const TOP = 10;
const BOTTOM = 30;

/** The chart of a report's curve, or null where there is none. */
export function chartOf(curve) {
  const found = describeCurve(curve);
  if (found === null) return null;
  const across = (x) => LEFT + x * (WIDTH - LEFT - RIGHT);
  const up = (y) => HEIGHT - BOTTOM - y * (HEIGHT - BOTTOM - TOP);
  const drawing = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": found.sentence });
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
