// The button "Check prompt": queues the prompt that only checks, and says how that went.

import { api } from "../../../scripts/api.js";
import { app } from "../../../scripts/app.js";
import { executionIdOf } from "./places.js";
import { checkPrompt } from "./precheck.js";

const queued = new Map(); // prompt id -> the badge that waits for it

/** Score the prompt of a node's sampler without sampling; the badge says what happens until the report comes. */
export async function check(node, badge) {
  try {
    const { output, workflow } = await app.graphToPrompt();
    const reduced = checkPrompt(output, executionIdOf(app.rootGraph ?? app.graph, node));
    badge.say("Prompt check is queued …");
    const answer = await api.queuePrompt(0, { output: reduced, workflow });
    if (answer.prompt_id) queued.set(answer.prompt_id, badge);
    else badge.say(`The server refused the check: ${firstOf(answer.node_errors)}`);
  } catch (error) {
    badge.say(reasonOf(error));
  }
}

/** Hear of checks that end without a report. */
export function listenToChecks() {
  api.addEventListener("execution_error", ({ detail }) => end(detail.prompt_id, `No check: ${detail.exception_message}`));
  api.addEventListener("execution_interrupted", ({ detail }) => end(detail.prompt_id, "The check was interrupted."));
  api.addEventListener("execution_success", ({ detail }) => queued.delete(detail.prompt_id)); // its report said all
}

function end(prompt, line) {
  queued.get(prompt)?.say(line.split("\n")[0]);
  queued.delete(prompt);
}

// a rejected prompt carries its reasons per node; our own errors are one line already
function reasonOf(error) {
  const { response } = error;
  if (!response) return error.message;
  return `The server refused the check: ${firstOf(response.node_errors) ?? response.error?.message ?? error.message}`;
}

function firstOf(nodeErrors) {
  const [first] = Object.values(nodeErrors ?? {}).flatMap(({ errors, class_type: type }) =>
    errors.map(({ message, details }) => `${type}: ${message} (${details})`),
  );
  return first;
}
