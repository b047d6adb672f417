// The pictures that runs produced, the newest of each prompt. No DOM, no ComfyUI, so that node can test it.

const KEPT = 50; // prompts

/** The address of a picture that ComfyUI serves, below its API. */
export function viewPath({ filename, subfolder, type }) {
  return `/view?${new URLSearchParams({ filename, subfolder: subfolder ?? "", type: type ?? "output" })}`;
}

/** The last picture in the outputs of a finished prompt, {node: {images}} as in ComfyUI's history; null without one. */
export function pictureIn(outputs) {
  const images = Object.values(outputs ?? {}).flatMap((output) => output?.images ?? []);
  return images.filter((image) => image?.filename).at(-1) ?? null;
}

/** A store of pictures by prompt id. */
export class Pictures {
  #newest = new Map();

  /** Remember what a node of a prompt produced; outputs without a picture change nothing. */
  add(prompt, output) {
    const picture = pictureIn({ output });
    if (!prompt || !picture) return;
    this.#newest.delete(prompt);
    this.#newest.set(prompt, picture);
    if (this.#newest.size > KEPT) this.#newest.delete(this.#newest.keys().next().value);
  }

  /** The newest picture of a prompt, or null. */
  of(prompt) {
    return this.#newest.get(prompt) ?? null;
  }
}
