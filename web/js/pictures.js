// The pictures that runs produced, of each prompt the newest first. No DOM, no ComfyUI, so that node can test it.

const KEPT = 50; // prompts

/** The address of a picture that ComfyUI serves, below its API. */
export function viewPath({ filename, subfolder, type }) {
  return `/view?${new URLSearchParams({ filename, subfolder: subfolder ?? "", type: type ?? "output" })}`;
}

/** The pictures in the outputs of a finished prompt, {node: {images}} as in ComfyUI's history, the newest first. */
export function picturesIn(outputs) {
  const images = Object.values(outputs ?? {}).flatMap((output) => output?.images ?? []);
  return images.filter((image) => image?.filename).reverse();
}

/** A store of pictures by prompt id. */
export class Pictures {
  #found = new Map();

  /** Remember what a node of a prompt produced; outputs without a picture change nothing. */
  add(prompt, output) {
    const added = picturesIn({ output });
    if (!prompt || added.length === 0) return;
    const all = [...added, ...this.of(prompt)];
    this.#found.delete(prompt);
    this.#found.set(prompt, all);
    if (this.#found.size > KEPT) this.#found.delete(this.#found.keys().next().value);
  }

  /** The pictures of a prompt, the newest first. */
  of(prompt) {
    return this.#found.get(prompt) ?? [];
  }
}
