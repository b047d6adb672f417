// Prompts in the format of ComfyUI's API, as a person's workflows make them.

export const node = (kind, inputs = {}) => ({ class_type: kind, inputs });

/** A guarded text-to-image prompt: loader 1, LoRA 2, guard 3, texts 4 and 5, latent 6, sampler 7, decoder 8. */
export function plain(inputs = {}) {
  const given = { model: ["3", 0], positive: ["4", 0], negative: ["5", 0], latent_image: ["6", 0], seed: 11 };
  return {
    1: node("CheckpointLoaderSimple", { ckpt_name: "a.safetensors" }),
    2: node("LoraLoader", { model: ["1", 0], clip: ["1", 1], lora_name: "l" }),
    3: node("MemGuard", { model: ["2", 0], policy: "stop", sensitivity: 97.7 }),
    4: node("CLIPTextEncode", { clip: ["2", 1], text: "a cup" }),
    5: node("CLIPTextEncode", { clip: ["2", 1], text: "" }),
    6: node("EmptyLatentImage", { width: 64, height: 64, batch_size: 1 }),
    7: node("KSampler", { ...given, steps: 20, cfg: 4, scheduler: "normal", denoise: 1, ...inputs }),
    8: node("VAEDecode", { samples: ["7", 0], vae: ["1", 2] }),
  };
}

/** The same with SamplerCustomAdvanced: noise 9, guider 10, sigmas 11. */
export function guided(guider, inputs) {
  const sampler = { noise: ["9", 0], guider: ["10", 0], sigmas: ["11", 0], latent_image: ["6", 0] };
  return {
    ...plain(),
    7: node("SamplerCustomAdvanced", sampler),
    9: node("RandomNoise", { noise_seed: 5 }),
    10: node(guider, { model: ["3", 0], ...inputs }),
    11: node("BasicScheduler", { model: ["2", 0], scheduler: "normal", steps: 4, denoise: 1 }),
  };
}
