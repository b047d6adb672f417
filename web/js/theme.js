// Whether ComfyUI's page is light or dark; it marks the body of a dark one.

const DARK = "dark-theme";

/** Whether the ground of panels is light. */
export function isLight() {
  return !document.body.classList.contains(DARK);
}

/** Call a function when the page has become light or dark. */
export function onTheme(act) {
  let light = isLight();
  const look = () => {
    if (isLight() === light) return;
    light = !light;
    act();
  };
  new MutationObserver(look).observe(document.body, { attributes: true, attributeFilter: ["class"] });
}
