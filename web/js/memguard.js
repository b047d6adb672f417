// MemGuard's page: a verdict on its nodes, and a toast when a warning was asked for and a run looks memorized.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { addBadge, addWords, loadStyle, showReport, showWords } from "./badge.js";
import { nodeAt } from "./places.js";
import { toast, warns } from "./words.js";

const SHOWING = new Set(["MemGuard", "MemGuard_CheckPrompt", "MemGuard_Report"]);
const badges = new WeakMap(); // node -> its widget; gone with the node
const remembered = new Map(); // place -> report; a workflow tab rebuilds its nodes whenever it is opened
const warned = new Set(); // runs; the server may report a run when it is judged and again when it has ended

app.registerExtension({
  name: "MemGuard",
  aboutPageBadges: [{ label: "MemGuard", url: "https://github.com/memguard/memguard", icon: "pi pi-shield" }],

  setup() {
    loadStyle();
    api.addEventListener("memguard.report", ({ detail }) => {
      showAt(detail.home, detail.report);
      warnOnce(detail.report); // also where no node of the open workflow is its home
    });
  },

  nodeCreated(node) {
    if (node.comfyClass === "MemGuard_TokenAttribution") addExplanation(node);
    if (!SHOWING.has(node.comfyClass)) return;
    badges.set(node, addBadge(node));
    const before = node.onExecuted;
    node.onExecuted = function (output) {
      before?.call(this, output);
      // comes from the cache as well, with no sampler running and so without an event
      for (const report of output?.memguard ?? []) {
        show(this, report);
        for (const home of output.memguard_home ?? []) showAt(home, report);
        warnOnce(report);
      }
    };
  },

  loadedGraphNode(node) {
    const report = badges.has(node) && remembered.get(place(node));
    if (report) showReport(node, badges.get(node), report);
  },
});

function addExplanation(node) {
  const panel = addWords(node);
  const before = node.onExecuted;
  node.onExecuted = function (output) {
    before?.call(this, output);
    const [attribution] = output?.memguard_attribution ?? [];
    if (attribution) showWords(this, panel, attribution);
  };
}

function showAt(executionId, report) {
  const node = nodeAt(app.rootGraph ?? app.graph, executionId);
  if (badges.has(node)) show(node, report); // the same id may be another node's in the workflow that is open now
}

function show(node, report) {
  remembered.set(place(node), report);
  showReport(node, badges.get(node), report);
}

function place(node) {
  return `${node.graph.id}/${node.id}`;
}

function warnOnce(report) {
  if (!warns(report) || warned.has(report.run)) return;
  warned.add(report.run);
  app.extensionManager.toast.add(toast(report));
}
