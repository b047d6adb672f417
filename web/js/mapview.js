// A map over the picture that the run made: legend with numbers, opacity, and the words that are strongest at a spot.
// @ts-check
/** @import { TokenSpan } from "./report.js" */
/** @import { Atlas, Palette, RunMap } from "./types.js" */

import { gradient } from "./colours.js";
import { part } from "./dom.js";
import { cellAt, fits, meaningOf, pixels, rankedAt, short } from "./maps.js";

const LISTED = 6; // words at a spot
const START = 0.7; // opacity
const HINT = "Click a spot, or move with the arrow keys, to see the words that act there.";
/** @type {Record<string, [number, number]>} */
const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

/** One map view. */
export class MapView {
  #atlas;
  #spans;
  #palette;
  #map;
  #opacity = START;
  /** @type {{ row: number, column: number } | null} */
  #spot = null;
  #ground = part("div", "memguard-picture");
  #canvas = document.createElement("canvas");
  #marker = part("div", "memguard-spot");
  #legend = part("div", "memguard-legend");
  #words = part("div", "memguard-ranked");
  element = part("div", "memguard-map");

  /**
   * @param {Atlas} atlas
   * @param {RunMap} map of the atlas, the one to show
   * @param {TokenSpan[]} spans of the attribution
   * @param {string[]} sources addresses of pictures; the first that has the map's proportions is shown
   * @param {Palette} palette
   */
  constructor(atlas, map, spans, sources, palette) {
    this.#atlas = atlas;
    this.#map = map;
    this.#spans = spans;
    this.#palette = palette;
    [this.#canvas.height, this.#canvas.width] = atlas.size;
    this.#ground.append(this.#picture([...sources]), this.#canvas, this.#marker);
    this.#ground.style.aspectRatio = `${atlas.size[1]} / ${atlas.size[0]}`;
    this.#marker.hidden = true;
    this.#listen();
    this.#words.setAttribute("role", "status");
    this.element.append(this.#ground, this.#legend, this.#slider(), this.#words);
    this.#show();
  }

  #show() {
    const { low, high } = this.#map;
    const bar = part("div", "memguard-ramp");
    bar.style.background = gradient(this.#palette);
    const scale = part("div", "memguard-scale");
    scale.append(part("span", "", short(low)), bar, part("span", "", short(high)));
    this.#legend.replaceChildren(part("div", "memguard-line", meaningOf(this.#map, this.#spans)), scale);
    this.#describe();
    this.#draw();
    this.#rank();
  }

  #picture(/** @type {string[]} */ sources) {
    const image = document.createElement("img");
    image.alt = "";
    image.draggable = false;
    // where none is left the map is shown on plain ground
    const next = () => {
      const source = sources.shift();
      if (source === undefined) image.remove();
      else image.src = source;
    };
    image.addEventListener("load", () => {
      // a drawing with a legend is none that the run made
      if (!fits(this.#atlas.size, image.naturalWidth, image.naturalHeight)) return next();
      this.#ground.style.aspectRatio = `${image.naturalWidth} / ${image.naturalHeight}`;
      });
    image.addEventListener("error", next); // deleted
    next();
    return image;
  }

  #slider() {
    const label = part("label", "memguard-opacity", "Opacity");
    const slider = document.createElement("input");
    Object.assign(slider, { type: "range", min: "0", max: "100", value: String(100 * this.#opacity) });
    const number = part("output", "", `${slider.value} %`);
    slider.addEventListener("input", () => {
      this.#opacity = Number(slider.value) / 100;
      number.textContent = `${slider.value} %`;
      this.#draw();
    });
    label.append(slider, number);
    return label;
  }

  #listen() {
    const [height, width] = this.#atlas.size;
    this.#ground.tabIndex = 0;
    this.#ground.setAttribute("role", "application"); // its arrow keys are its own
    this.#ground.addEventListener("click", (event) => {
      const box = this.#ground.getBoundingClientRect();
      this.#point(cellAt(this.#atlas.size, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height));
    });
    this.#ground.addEventListener("keydown", (event) => {
      const step = STEPS[event.key];
      if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const { row, column } = this.#spot ?? { row: Math.floor(height / 2), column: Math.floor(width / 2) };
      this.#point(this.#spot ? cellAt(this.#atlas.size, (column + step[1] + 0.5) / width, (row + step[0] + 0.5) / height) : { row, column });
    });
  }

  #point(/** @type {{ row: number, column: number }} */ spot) {
    this.#spot = spot;
    const [height, width] = this.#atlas.size;
    Object.assign(this.#marker.style, {
      left: `${(100 * spot.column) / width}%`,
      top: `${(100 * spot.row) / height}%`,
      width: `${100 / width}%`,
      height: `${100 / height}%`,
    });
    this.#marker.hidden = false;
    this.#rank();
  }

  #describe() {
    const range = `From ${short(this.#map.low)} to ${short(this.#map.high)}.`;
    this.#ground.setAttribute("aria-label", `${meaningOf(this.#map, this.#spans)}. ${range} ${HINT}`);
    this.#ground.title = HINT;
  }

  #draw() {
    const [height, width] = this.#atlas.size;
    const image = new ImageData(pixels(this.#map, this.#opacity, this.#palette), width, height);
    this.#canvas.getContext("2d")?.putImageData(image, 0, 0);
  }

  #rank() {
    this.#words.replaceChildren(...(this.#spot === null ? [part("div", "memguard-line", HINT)] : this.#list(this.#spot)));
  }

  #list(/** @type {{ row: number, column: number }} */ { row, column }) {
    const found = rankedAt(this.#atlas, this.#spans, row, column);
    const place = `row ${row + 1} of ${this.#atlas.size[0]}, column ${column + 1} of ${this.#atlas.size[1]}`;
    if (found.length === 0) return [part("div", "memguard-line", `At ${place}: this run kept no map of a word.`)];
    const list = part("ol", "memguard-list");
    list.append(...found.slice(0, LISTED).map(({ word, value }) => part("li", "", `${word}: ${short(value)}`)));
    return [part("div", "memguard-line", `Words at ${place}:`), list];
  }
}
