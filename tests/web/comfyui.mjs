// ComfyUI's page as node sees it, and the way of web/js to it: load this with --import before a test.
// app and api are the two objects that the page's modules import; a test fills in what it needs.

import { register } from "node:module";

const HOOKS = `
  export async function resolve(name, context, next) {
    if (/\\/scripts\\/(api|app)\\.js$/.test(name)) return { url: ${JSON.stringify(import.meta.url)}, shortCircuit: true };
    const found = await next(name, context);
    return found.url.includes("/web/js/") ? { ...found, format: "module" } : found;
  }`;

register(`data:text/javascript,${encodeURIComponent(HOOKS)}`);

export const api = new EventTarget();
export const app = { extensions: [], registerExtension: (extension) => app.extensions.push(extension) };
