// What crosses the page's modules.

import type { Report } from "./report.js";

export type Tone = "none" | "unknown" | "ordinary" | "suspicious" | "memorized";
export type Palette = "colour" | "grey";
export type Colour = number[]; // red, green, blue in 0..255

export interface Said {
  tone: Tone;
  mark: string;
  text: string;
}

/** What a badge shows of a report. */
export interface Described extends Said {
  lines: string[];
  sentence: string;
}

/** What is kept of a run that is listed and not shown. */
export interface Brief {
  run: string;
  created?: string;
  width?: number | null;
  height?: number | null;
  mark: string;
  text: string;
  sentence: string;
}

/** What a node shows. */
export interface Entry {
  report: Report;
  runs?: (Report | Brief)[];
  prompt?: string | null; // id
  check?: boolean;
  saved?: boolean;
}

/** What the memory of finished runs knows of a text. */
export interface Warning {
  kind: "prompt" | "words";
  words: string[];
  verdict: string;
  score: number | null;
  percentile: number | null;
  checkpoint: string | null;
  seed: number | null;
  created: string;
}

/** The state of the memory of finished runs. */
export interface Memory {
  status: string;
  enabled?: boolean;
  runs?: number;
  bytes?: number;
}

export interface Packed {
  name: string;
  span: number | null;
  low: number;
  high: number;
  data: string; // base64
}

export interface RunMap extends Packed {
  values: Uint8Array;
}

export type Size = [height: number, width: number];

/** The maps of a run. */
export interface Atlas {
  run: string;
  size: Size;
  maps: Map<string, RunMap>;
  preview?: string | null;
}

export interface Picture {
  filename: string;
  subfolder?: string;
  type?: string;
}

export type Link = [id: string, slot: number];

/** A node of a prompt in the format of ComfyUI's API; graph.js adds types and boxes. */
export interface PromptNode {
  class_type?: string;
  inputs: Record<string, any>;
}

export type Prompt = Record<string, PromptNode>;

export interface PlainNode extends PromptNode {
  types: Record<string, string>;
  boxes: string[];
}

export type PlainPrompt = Record<string, PlainNode>;

/** What a sampler samples from. */
export interface Sampler {
  id: string;
  model: Link;
  positive: Link;
  negative: Link | null;
  latent: Link;
  seed: number | Link;
  sigmas: Link | null;
  schedule: { scheduler: string; steps: number; denoise: number } | null;
  late: boolean;
}
