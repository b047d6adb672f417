// A panel of MemGuard in a node: one DOM widget, so that the classic canvas and Nodes 2.0 both show it, as high as its text.

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

/** Add an empty panel to a node. It is a result, so it is no value of the workflow nor of the prompt. */
export function addPanel(node, name, label, { kind = "memguard-badge", least = 40, margin = MARGIN } = {}) {
  const element = document.createElement("div");
  element.className = kind;
  element.tabIndex = 0; // reading it must not need a mouse
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", label);
  element.append(document.createElement("div"));
  // the canvas has keys of its own: space moves it, arrows move nodes
  element.addEventListener("keydown", (event) => {
    if (KEYS.has(event.key) && !event.ctrlKey && !event.metaKey) event.stopPropagation();
  });
  // as high as its text, also in a node with room to spare; off screen and before the first layout as high as it was
  let content = least;
  const height = () => {
    if (element.offsetWidth > NARROW) content = Math.max(element.firstChild.offsetHeight, least);
    return content + 2 * margin + BORDER;
  };
  const widget = node.addDOMWidget(name, "memguard_badge", element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: height,
    getMaxHeight: height,
    margin,
  });
  widget.serialize = false;
  new ResizeObserver(() => makeRoom(node)).observe(element.firstChild);
  return widget;
}

/** Fit a node to its panels; what they no longer need is given back. */
export function makeRoom(node) {
  requestAnimationFrame(() => {
    if (!node.graph) return; // removed meanwhile
    const [width, height] = node.size;
    const needed = node.computeSize()[1];
    const before = grown.get(node);
    // any other height is a person's choice; LiteGraph itself grows a node to about what it needs
    const automatic = before && (Math.abs(height - before.given) < 1 || Math.abs(height - needed) < SLACK);
    const own = automatic ? before.own : height;
    const given = Math.max(own, needed);
    if (Math.abs(given - height) >= 1) node.setSize([width, given]);
    grown.set(node, { own, given });
    node.setDirtyCanvas(true, true);
  });
}
