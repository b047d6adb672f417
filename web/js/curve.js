// The score curve over the model calls of a run: its shape and its words. No DOM, no ComfyUI, so that node can test it.

const ENOUGH = 2; // points that make a curve

/**
 * What the chart shows of [[sigma, rms], ...]: points in 0..1 (x to the right, y upwards), the numbers at the axes, and
 * a sentence that says the curve in words. null where there is no curve.
 */
export function describeCurve(curve) {
  const known = (curve ?? []).map(([, rms], call) => ({ call, rms })).filter(({ rms }) => Number.isFinite(rms));
  if (known.length < ENOUGH) return null;
  const last = curve.length - 1;
  const highest = known.reduce((best, point) => (point.rms > best.rms ? point : best));
  const lowest = known.reduce((best, point) => (point.rms < best.rms ? point : best));
  const top = highest.rms > 0 ? highest.rms : 1;
  return {
    points: known.map(({ call, rms }) => ({ x: call / last, y: Math.max(0, rms) / top })),
    calls: [1, curve.length],
    values: [0, top].map(short),
    sentence:
      `Noise gap over ${curve.length} model calls, RMS: starts at ${short(known[0].rms)}, ` +
      `highest ${short(highest.rms)} at call ${highest.call + 1}, lowest ${short(lowest.rms)} at call ${lowest.call + 1}, ` +
      `ends at ${short(known.at(-1).rms)}.`,
  };
}

function short(value) {
  return String(Number(value.toPrecision(3)));
}
