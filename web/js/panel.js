// A panel of MemGuard in a node: one DOM widget, so that the classic canvas and Nodes 2.0 both show it, as high as its text.
// @ts-check

const STYLE = new URL("../memguard.css", import.meta.url);
const MARGIN = 8; // around a panel, in the canvas's own units
const BORDER = 2;
const SLACK = 16;
const NARROW = 60; // below it an element has no place yet
const KEYS = new Set(["Enter", " ", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"]);
const grown = new WeakMap(); // node -> its height before a panel needed more, and the height it was given

/** Load the colours once per page; ComfyUI loads scripts only. */
export function loadStyle() {
  const link = document.createElement("link");
  link.rel = "stylesheet";
  link.href = STYLE.href;
  document.head.append(link);
}

/**
 * Add an empty panel to a node: {element, widget}, and `content`, which its text goes into. It is a result, so it is no
 * value of the workflow nor of the prompt.
 * @param {ComfyUI.Node} node
 * @param {string} name
 * @param {string} label
 */
export function addPanel(node, name, label, { kind = "memguard-badge", least = 40, margin = MARGIN } = {}) {
  const element = document.createElement("div");
  element.className = kind;
  element.tabIndex = 0; // reading it must not need a mouse
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", label);
  const content = document.createElement("div");
  element.append(content);
  // the canvas has keys of its own: space moves it, arrows move nodes
  element.addEventListener("keydown", (event) => {
    if (KEYS.has(event.key) && !event.ctrlKey && !event.metaKey) event.stopPropagation();
  });
  // as high as its text, also in a node with room to spare; off screen and before the first layout as high as it was
  let tall = least;
  const height = () => {
    if (element.offsetWidth > NARROW) tall = Math.max(content.offsetHeight, least);
    return tall + 2 * margin + BORDER;
  };
  const widget = node.addDOMWidget(name, "memguard_badge", element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: height,
    getMaxHeight: height,
    margin,
  });
  widget.serialize = false;
  new ResizeObserver(() => makeRoom(node)).observe(content);
  return { element, content, widget };
}

/** Fit a node to its panels; what they no longer need is given back. */
export function makeRoom(/** @type {ComfyUI.Node} */ node) {
  requestAnimationFrame(() => {
    if (!node.graph) return; // removed meanwhile
    const [width, height] = node.size;
    const needed = node.computeSize()[1];
    const before = grown.get(node);
    // any other height is a person's choice; LiteGraph itself grows a node to about what it needs
    const automatic = before !== undefined && (Math.abs(height - before.given) < 1 || Math.abs(height - needed) < SLACK);
    const own = automatic ? before.own : height;
    const given = Math.max(own, needed);
    if (Math.abs(given - height) >= 1) node.setSize([width, given]);
    grown.set(node, { own, given });
    node.setDirtyCanvas(true, true);
  });
}
