// Made by tools/report_format.py from memguard/records.py: run that, do not edit this.
// A report of MemGuard, as this version writes it. Keys may be added; numbers that are not finite are null.

export type Policy = "observe" | "warn" | "stop" | "mitigate";

export type Verdict = "ordinary" | "suspicious" | "memorized" | "unknown";

export type Reference = "negative" | "empty";

export type Group = "word" | "bos" | "eos" | "padding" | "pooled";

/** Everything that is known of one sampling run. `to_json` is the format that all screens read */
export interface Report {
  /** version of this format */
  schema: 1;
  /** id of the run, which no other run has; "" where none was begun */
  run: string;
  /** "comfyui", "a1111", "forge", "diffusers" or another host's name; "" where it is not known */
  host: string;
  /** version of that host, as it writes it */
  host_version: string;
  /** version of MemGuard that made the report */
  memguard_version: string;
  /** fingerprint of the checkpoint; "" where it is not known */
  model: string;
  /** family of the model: "sd15", "sd2", "sdxl", "sd3", "flux" or "other" */
  family: string;
  /** text that was scored; null where the host cannot tell it */
  prompt: string | null;
  /** text on the other side of guidance; null where there is none or it cannot be told */
  negative_prompt: string | null;
  /** seeds of the noise, one for each image, or one for the whole batch; empty where they are not known */
  seeds: number[];
  /** its name in the host; null where it is not known */
  sampler: string | null;
  /** sampling steps that were asked for, 0 for a check before sampling; null where they are not known */
  steps: number | null;
  /** guidance scale; null where it is not known or there is none */
  cfg: number | null;
  /** of the picture, pixels; null where it is not known */
  width: number | null;
  /** of the picture, pixels; null where it is not known */
  height: number | null;
  /** what a run that looks memorized leads to */
  policy: Policy;
  /** what each detector says, in the order in which they were asked */
  findings: Finding[];
  /** how much each word contributes; null where it was not asked for */
  attribution: Attribution | null;
  /** what was changed in the run, one line each, and only what the host has seen to act */
  actions: string[];
  /** what was tried to mitigate the run, in order */
  attempts: Attempt[];
  /** what a reader must know beside the verdict, one line each */
  notes: string[];
  /** the last error inside MemGuard, in a programmer's words; null where there was none */
  error: string | null;
  /** score of each image by the detector that led to the first attempt; empty where there was none */
  scores_before: (number | null)[];
  /** the same after the last attempt that was kept and scored; empty where there is none */
  scores_after: (number | null)[];
  /** how long the run took, from its beginning to its report */
  seconds: number | null;
  /** rows of the model that MemGuard computed beside the host's own */
  extra_rows: number;
  /** when the run began, ISO 8601 with time zone */
  created: string;
  /** sigma and RMS of the noise gap, mean over the images, of each model call that has both predictions */
  curve: [number | null, number | null][];
  /** names of the maps that the host keeps for this run */
  maps: string[];
  /** The gravest verdict of all findings; "unknown" where no finding has one */
  verdict: Verdict;
  /** The verdict of the last attempt that was kept; "unknown" where nothing was, or it was not scored again */
  verdict_after: Verdict;
  /** the one sentence that every screen shows for a report */
  message: string;
  /** which of `findings` the sentence is of, counted from 0; null where there is none */
  told: number | null;
}

/** What one detector says of one run */
export interface Finding {
  /** its name */
  detector: string;
  /** one number per image, mean over the scored steps; null for an image without one */
  scores: (number | null)[];
  /** the same scores per latent element, which is what thresholds use */
  rms: (number | null)[];
  /** one list per scored step, each with one number per image */
  per_step: (number | null)[][];
  /** what the scores measure */
  unit: string;
  /** "ok", or the reason why there is no score */
  status: string;
  /** "negative" or "empty"; what the prompt was compared with */
  reference: Reference;
  /** noise level of the first scored step */
  sigma: number | null;
  /** the same on the training schedule */
  timestep: number | null;
  /**
   * distance from ordinary prompts, in standard deviations of the log score by a log-normal fit, for drawings and
   * comparisons; null without a profile
   */
  zscore: number | null;
  /** 100 (1 - p_value), so never more than n of n + 1; null without a profile */
  percentile: number | null;
  /** RMS above which the verdict is at least "suspicious" */
  threshold: number | null;
  /** RMS of the median ordinary prompt; null where it is not known */
  typical: number | null;
  /** where the threshold comes from, or why there is none */
  threshold_source: string;
  /** "ordinary", "suspicious", "memorized" or "unknown"; of several prompts in a batch, the gravest one's */
  verdict: Verdict;
  /** number of the prompt of each image, where a batch holds several prompts; empty for one prompt */
  prompts: number[];
  /** run whose finding this is, where a pass without a verdict took it over; empty for the run's own */
  carried: string;
  /** (1 + ordinary prompts that score at least as high) / (n + 1); null without a profile */
  p_value: number | null;
  /** ordinary prompts that score lower */
  below: number | null;
  /** ordinary prompts in the profile, the n above */
  count: number | null;
  /**
   * share of ordinary prompts, 0..1, that get this verdict or a graver one by mistake; for "ordinary", that are
   * flagged
   */
  rate: number | null;
  /** for this very profile it is at most this, with 95 % confidence */
  rate_bound: number | null;
  /** share of ordinary prompts that are flagged by mistake, by this detector looking at one prompt */
  flag_rate: number | null;
  /** what limits the verdict or the score, in words; "" where nothing does */
  caveat: string;
  /** what a first look at a smaller size said before; null where there was none */
  prescan?: Prescan | null;
  /** where a score stands among ordinary prompts, by rank; why that is not known where it is not */
  place: string;
  /** how often an ordinary prompt gets such a verdict by mistake; "" where no rate is known */
  odds: string;
}

/** What a pre-scan, a first look at a smaller size, says of a prompt by one detector */
export interface Prescan {
  /** whether the prompt was scored at the size of the scan as well */
  promoted: boolean;
  /** of the first look, pixels */
  height: number;
  /** pixels */
  width: number;
  /** mean score over its images; null where there is none, which promotes the prompt */
  score: number | null;
  /** the same per latent element */
  rms: number | null;
  /** (1 + ordinary prompts that score at least as high at that size) / (n + 1) */
  p_value: number | null;
  /** ordinary prompts that score lower at that size */
  below: number | null;
  /** ordinary prompts, the n above */
  count: number | null;
}

/** One try to mitigate a run */
export interface Attempt {
  /** what was tried, in words */
  mitigation: string;
  /** what was changed, or why nothing was; one line each */
  changes: string[];
  /** of each image afterwards, by the detector that flagged the run; empty where it was not scored again */
  scores: (number | null)[];
  /** afterwards; "unknown" where it was not scored again */
  verdict: Verdict;
  /** whether the run went on with it */
  kept: boolean;
  /** rows of the model that it cost */
  extra_rows: number;
  /** that it took */
  seconds: number | null;
}

/** How much each word contributes, and where in the picture */
export interface Attribution {
  /** "gradient", "ablation" or "attention" */
  method: string;
  /** the words in the order of the prompt, then BOS, EOS, padding and the pooled vector as far as they exist */
  spans: TokenSpan[];
  /** one per span, in `unit`; the mean over images and scored steps */
  weights: (number | null)[];
  /** one per token column */
  token_scores: (number | null)[];
  /** what the weights measure */
  unit: string;
  /** the first-step score of the prompt itself, mean over the images; null where it was not measured */
  score: number | null;
  /** per cross-attention layer, one weight per span; method "attention" only */
  layers: Record<string, (number | null)[]>;
  /** "ok", or the reason why there is no attribution */
  status: string;
  /** what a reader must know, such as a method that stood in for another */
  notes: string[];
}

/** One word of a prompt and the token columns that carry it; BOS, EOS, padding, pooled are spans of their own */
export interface TokenSpan {
  /** the word as the prompt has it */
  text: string;
  /** of the encoded prompt; none for a word that was cut off, and for the pooled vector */
  columns: number[];
  /** "word", or what the columns are instead; "pooled" is the prompt vector beside the tokens (SDXL, ...) */
  group: Group;
  /** the tokenizer's ids, in the order of the columns */
  ids: number[];
  /** first and past-the-last character in the prompt, where that is known */
  place: [number, number] | null;
  /** factor that the host gives to the word, 1.3 for (word:1.3) */
  emphasis: number | null;
  /** of the prompt that the word belongs to: AND parts, combined or scheduled prompts have their own rows */
  part: number;
}
