"""MemGuard Audit LoRA: which of its training pictures a LoRA copies."""

from comfy_api.latest import io

from ..memguard.audit.making import Making
from ..memguard.hosts.comfyui import auditing, finding, loras
from ..memguard.table import AUDIT, RUN
from .types import CATEGORY, input_of

LARGEST_SEED = 2**32  # those of the pictures follow it


@io.comfytype(io_type="LORA_MODEL")
class LoraModel(io.ComfyTypeIO):
    Type = dict  # of ComfyUI's training nodes: name -> tensor


class MemGuardAuditLora(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        folder = "a folder below ComfyUI's input folder, or a whole path."
        return io.Schema(
            node_id="MemGuard_AuditLora",
            display_name="MemGuard Audit LoRA",
            category=CATEGORY,
            description="Generates pictures from the captions of a LoRA's training pictures, with and without it, and "
            "says which of them come out. Takes as long as those pictures.",
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint that the LoRA is for, without it."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder, without the LoRA."),
                io.Vae.Input("vae", tooltip="The checkpoint's VAE."),
                io.Latent.Input("latent", tooltip="An empty latent of the size that the LoRA was trained at."),
                io.Combo.Input(
                    "lora_name",
                    options=loras.names(),
                    default=loras.NONE,
                    tooltip="The LoRA, a file in models/loras. none: the one that is connected.",
                ),
                io.String.Input(
                    "folder",
                    default="",
                    tooltip=f"Of the training pictures, with name.txt beside name.png or metadata.jsonl: {folder}",
                ),
                io.String.Input(
                    "held_out",
                    default="",
                    tooltip=f"Of captioned pictures of the same source that were kept out of the training: {folder} "
                    "Empty: there is no p-value.",
                ),
                input_of("seeds", AUDIT["num_images"]),
                input_of("steps", AUDIT["num_inference_steps"]),
                input_of("cfg", RUN["guidance_scale"]),
                input_of("limit", AUDIT["limit"], "2 or more; 0 is all."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=LARGEST_SEED,
                    control_after_generate=False,  # the page would audit anew after each run
                    tooltip="Of each caption's first picture. The others follow it.",
                ),
                io.Combo.Input("sampler_name", options=auditing.SAMPLERS, default="euler", tooltip="As KSampler's."),
                io.Combo.Input("scheduler", options=auditing.SCHEDULERS, default="normal", tooltip="As KSampler's."),
                input_of("threshold", AUDIT["threshold"]),
                LoraModel.Input("lora", optional=True, tooltip="The LoRA of Train LoRA, in place of a file."),
            ],
            outputs=[
                io.String.Output(display_name="verdict", tooltip="What was found, in one sentence."),
                io.String.Output(display_name="json", tooltip="The whole audit: audit.json of the command line."),
                io.Boolean.Output(display_name="copied", tooltip="True where the LoRA copies a training picture."),
                io.Image.Output(
                    display_name="pairs",
                    tooltip="The copied pictures beside what was generated, at most 16; where none is, the most alike.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, folder, held_out):
        try:
            for name in (folder, *([held_out] if held_out.strip() else [])):
                finding.folder_of(name)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder, held_out, lora_name, **_):
        return auditing.state(folder, held_out, lora_name)

    @classmethod
    def execute(
        cls,
        model,
        clip,
        vae,
        latent,
        lora_name,
        folder,
        held_out,
        seeds,
        steps,
        cfg,
        limit,
        seed,
        sampler_name,
        scheduler,
        threshold,
        lora=None,
    ):
        making = Making(seeds, steps, cfg, seed=seed)
        settings = auditing.Settings(making, sampler_name, scheduler, limit or None, threshold)
        asked = loras.given(lora, lora_name)
        found, pairs = auditing.audit(model, clip, vae, latent, asked, folder, held_out, settings)
        verdict, shown = auditing.said(found)
        copied = any(each.copied for each in found.checkpoints)
        return io.NodeOutput(verdict, found.to_json(), copied, pairs, ui={"text": [verdict], "memguard_audit": [shown]})


NODES = [MemGuardAuditLora]
