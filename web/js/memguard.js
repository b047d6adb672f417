// MemGuard's page: reports on its nodes, a toast when a warning was asked for, warnings while typing, settings.
// @ts-check
/** @import { Report } from "./report.js" */
/** @import { Entry } from "./types.js" */

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { Audit } from "./audit.js";
import { Badge } from "./badge.js";
import { check, guardOf, listenToChecks } from "./check.js";
import { onTheme } from "./colours.js";
import { compact, gathered, replaces, restored } from "./entries.js";
import { everyNode, nodeAt, plainPrompt } from "./graph.js";
import { loadStyle } from "./panel.js";
import { watchTyping } from "./reminders.js";
import { Pictures, addressOf, outputsOf, picturesIn, reportsOf } from "./server.js";
import { onChange, setting, settings } from "./settings.js";
import { Toasts, warns } from "./toasts.js";
import { guardsOf } from "./wiring.js";
import { Words } from "./words.js";

/** @typedef {{ home: string, node_id: string, prompt_id?: string | null, workflow?: string | null, report: Report }} Payload */
/** @typedef {{ node: string, display_node?: string, output: any, prompt_id: string }} Executed */

const SHOWING = new Set(["MemGuard", "MemGuard_CheckPrompt", "MemGuard_Report"]);
/** @type {WeakMap<any, Badge>} */
const badges = new WeakMap(); // by node, and gone with it
/** @type {WeakMap<any, Words>} */
const words = new WeakMap();
/** @type {WeakMap<any, Audit>} */
const audits = new WeakMap();
/** @type {Map<string, Entry>} */
const remembered = new Map(); // by place; a workflow tab rebuilds its nodes whenever it is opened
const warned = new Set(); // runs; the server reports a run when it is judged and again when it has ended
const pictures = new Pictures();
/** @type {Toasts | null} */
let toasts = null;
let lookAgain = () => {};

app.registerExtension({
  name: "MemGuard",
  aboutPageBadges: [{ label: "MemGuard", url: "https://github.com/memguard/memguard", icon: "pi pi-shield" }],
  settings,

  setup() {
    loadStyle();
    api.addEventListener("memguard.report", ({ detail }) => {
      receive(detail);
      warnOnce(detail.report, detail.workflow ?? undefined); // also where no node of the open workflow is its home
    });
    api.addEventListener("executed", ({ detail }) => executed(detail));
    api.addEventListener("reconnected", catchUp);
    listenToChecks();
    lookAgain = watchTyping((node) => badges.get(node));
    onChange(repaintAll);
    onTheme(app.ui?.settings, repaintAll);
  },

  nodeCreated(node) {
    if (node.comfyClass === "MemGuard_TokenAttribution") words.set(node, new Words(node));
    if (node.comfyClass === "MemGuard_AuditLora") audits.set(node, new Audit(node));
    if (SHOWING.has(String(node.comfyClass))) addBadge(node);
  },

  loadedGraphNode(node) {
    const entry = remembered.get(place(node));
    if (entry) badges.get(node)?.show(entry);
    audits.get(node)?.restore();
  },

  async afterConfigureGraph() {
    lookAgain();
    await catchUp();
  },
});

function addBadge(/** @type {ComfyUI.Node} */ node) {
  const badge = new Badge(node, picturesOf, node.comfyClass === "MemGuard" ? () => check(node, badge) : null);
  badges.set(node, badge);
  const sensitivity = node.widgets?.find((widget) => widget.name === "sensitivity");
  if (sensitivity) sensitivity.value = setting("Sensitivity") ?? sensitivity.value; // a loaded node gets its own afterwards
  const before = node.onConfigure;
  node.onConfigure = function (/** @type {any[]} */ ...values) {
    before?.apply(this, values);
    const entry = this.graph ? restored(this.properties, this.id) : null; // a clone is configured before it has a place
    if (entry) badges.get(this)?.show(entry);
    else delete this.properties?.memguard; // a copy of a node made no run
  };
}

function repaintAll() {
  everyNode(root()).forEach((node) => (badges.get(node) ?? words.get(node))?.repaint());
}

// what arrived while the page was away; a report of now is never replaced by an older one
async function catchUp() {
  const { id } = root();
  const payloads = await reportsOf(id);
  for (const payload of payloads) receive(payload, true);
  const prompt = payloads.at(-1)?.prompt_id;
  const outputs = prompt ? await outputsOf(prompt) : {};
  if (root().id !== id) return; // another workflow was opened meanwhile
  for (const [node, output] of Object.entries(outputs)) executed({ node, output, prompt_id: prompt }, true);
}

// a guard from the cache may have an older id: ComfyUI keeps outputs when a node is copied or put into a subgraph
function receive(/** @type {Payload} */ { home, node_id: sampler, prompt_id: prompt, workflow, report }, late = false) {
  if (workflow && workflow !== root().id) return; // of another tab; fetched when that is opened
  const guard = guardOf(home);
  const homes = guard !== null ? [guard] : badges.has(nodeAt(root(), home)) ? [home] : guardsOf(plainPrompt(root()), sampler);
  for (const id of homes) showAt(id, { report, prompt, check: guard !== null }, late);
}

// outputs come from the cache as well, with no sampler running and so without a report
function executed(/** @type {Executed} */ { node, display_node: display, output, prompt_id: prompt }, late = false) {
  pictures.add(prompt, output);
  const [attribution] = output?.memguard_attribution ?? [];
  if (attribution) words.get(nodeAt(root(), display ?? node))?.show(attribution);
  const [audit] = output?.memguard_audit ?? [];
  if (audit) audits.get(nodeAt(root(), display ?? node))?.show(audit);
  for (const report of output?.memguard ?? []) {
    const guard = guardOf(node);
    const homes = guard === null ? [display ?? node, ...(output.memguard_home ?? [])] : [guard];
    for (const home of homes) showAt(home, { report, prompt, check: guard !== null }, late);
    if (!late) warnOnce(report);
  }
}

function showAt(/** @type {string} */ executionId, /** @type {Entry} */ entry, late = false) {
  const node = nodeAt(root(), executionId);
  const badge = badges.get(node); // the same id may be another node's in the workflow that is open now
  if (!node || !badge || (late && !replaces(entry, badge.entry))) return;
  const all = gathered(badge.entry, entry);
  remembered.set(place(node), all);
  node.properties.memguard = compact(all, node.id);
  badge.show(all);
  lookAgain();
}

// addresses of what the same prompt made; of a run before a reload the history knows
async function picturesOf(/** @type {Entry} */ { prompt }) {
  if (!prompt) return [];
  const seen = pictures.of(prompt);
  return (seen.length > 0 ? seen : picturesIn(await outputsOf(prompt))).map(addressOf);
}

function root() {
  return app.rootGraph ?? app.graph;
}

function place(/** @type {ComfyUI.Node} */ node) {
  return `${node.graph?.id}/${node.id}`;
}

function warnOnce(/** @type {Report} */ report, workflow = root().id) {
  if (!setting("Toast") || !warns(report) || warned.has(report.run)) return;
  warned.add(report.run);
  toasts ??= new Toasts(app.extensionManager.toast);
  toasts.tell(workflow, report);
}
