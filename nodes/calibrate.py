"""MemGuard Calibrate: measures what ordinary prompts score on a checkpoint."""

from comfy_api.latest import io

from ..memguard.hosts.comfyui.profiles import calibrate
from .types import CATEGORY, ProfileType


class MemGuardCalibrate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_Calibrate",
            display_name="MemGuard Calibrate",
            category=CATEGORY,
            description="Scores ordinary prompts on a checkpoint, one evaluation of two prompts each, and saves the "
            "profile below models/memguard, where MemGuard finds it. Needed once per checkpoint and picture size.",
            inputs=[
                io.Model.Input("model", tooltip="The checkpoint's model, without a LoRA."),
                io.Clip.Input("clip", tooltip="The checkpoint's text encoder."),
                io.Latent.Input("latent", tooltip="A latent of the size that will be sampled; one image is enough."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=2**32,
                    control_after_generate=False,  # the page would change it after each run, and so calibrate anew
                    tooltip="Seed of the first prompt's noise.",
                ),
                io.String.Input("note", default="", tooltip="Kept in the file: the checkpoint's name, say."),
                io.Conditioning.Input(
                    "negative",
                    optional=True,
                    tooltip="The negative prompt that your workflows use. Not connected: the empty prompt.",
                ),
                io.String.Input(
                    "prompts",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Ordinary prompts of your own, one per line, at least 50: for a checkpoint with a "
                    "vocabulary of its own. Empty: the 634 prompts that MemGuard ships.",
                ),
            ],
            outputs=[
                ProfileType.Output(display_name="profile", tooltip="For MemGuard's profile input."),
                io.String.Output(display_name="path", tooltip="The saved file."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, clip, latent, seed, note, negative=None, prompts=""):
        own = [line.strip() for line in prompts.splitlines() if line.strip()]
        saved = calibrate(model, clip, latent, negative, seed, note, own or None)
        files = [profile.source for profile in saved]
        return io.NodeOutput(saved[0], files[0], ui={"text": [f"saved {file}" for file in files]})


NODES = [MemGuardCalibrate]
