"""What the MemGuard nodes share: their socket types, their common inputs, and how a report becomes outputs."""

from comfy_api.latest import io

from ..memguard.calibration import Profile
from ..memguard.hosts.comfyui.treating import Treater
from ..memguard.hosts.comfyui.watcher import Watcher
from ..memguard.mitigations import Mitigation
from ..memguard.records import NeuronSet, Report
from ..memguard.wording import message

CATEGORY = "memguard"
SEED_MAX = 0xFFFFFFFFFFFFFFFF
NO_SCORE = -1.0  # FLOAT outputs cannot be empty


@io.comfytype(io_type="MEMGUARD")
class Handle(io.ComfyTypeIO):
    Type = Watcher


@io.comfytype(io_type="MEMGUARD_PROFILE")
class ProfileType(io.ComfyTypeIO):
    Type = Profile


@io.comfytype(io_type="MEMGUARD_MITIGATION")
class MitigationType(io.ComfyTypeIO):
    Type = tuple  # of mitigations, tried in this order


@io.comfytype(io_type="MEMGUARD_NEURONS")
class NeuronsType(io.ComfyTypeIO):
    Type = NeuronSet


def policy_input(mitigate: bool = False) -> io.Input:
    more = (
        " mitigate: redo the first step of a run that looks memorized under a mitigation, and sample on from there; "
        "ordinary prompts stay as they are, bit for bit."
    )
    return io.Combo.Input(
        "policy",
        options=["observe", "warn", "stop", *(["mitigate"] if mitigate else [])],
        default="observe",
        tooltip="observe: score and report, never touch the picture. warn: also show a warning. "
        "stop: end the run after the scored steps if the prompt looks memorized." + (more if mitigate else ""),
    )


def strength_input() -> io.Input:
    return io.Float.Input(
        "strength",
        default=1.0,
        min=0.0,
        max=1.0,
        step=0.05,
        tooltip="0 changes nothing and installs nothing, 1 is the paper's own.",
    )


def mitigation_inputs(clip: bool = True) -> list[io.Input]:
    """Return the inputs that all mitigation nodes share, behind their own."""
    encoder = io.Clip.Input(
        "clip",
        optional=True,
        tooltip="The text encoder that the prompt goes through: tells BOS, words and padding apart. Used with model.",
    )
    return [
        strength_input(),
        io.Model.Input(
            "model",
            optional=True,
            tooltip="A model to treat in every run, memorized or not. Not connected: only for MemGuard's mitigation.",
        ),
        *([encoder] if clip else []),
        MitigationType.Input(
            "mitigation",
            optional=True,
            tooltip="Another mitigation, which MemGuard tries before this one; up to three in a row.",
        ),
    ]


def mitigation_outputs() -> list[io.Output]:
    return [
        io.Model.Output(display_name="model", tooltip="The model, treated in every run. Empty without a model."),
        MitigationType.Output(display_name="mitigation", tooltip="For MemGuard's mitigation input, policy mitigate."),
    ]


def mitigated(own: Mitigation, model=None, clip=None, before: tuple = ()) -> io.NodeOutput:
    """Return the outputs of a mitigation node."""
    treated = None if model is None else Treater(own, clip).install(model)
    return io.NodeOutput(treated, (*before, own))


def sensitivity_input() -> io.Input:
    return io.Float.Input(
        "sensitivity",
        default=99.0,
        min=50.0,
        max=99.99,
        step=0.01,
        tooltip="Percentile of ordinary prompts above which a prompt is flagged: at 99, about 1 ordinary prompt in 100 "
        "is. 99 takes a profile of at least 99 prompts, 99.9 one of 999. Needs a profile of the checkpoint (MemGuard "
        "Calibrate).",
    )


def profile_input() -> io.Input:
    return ProfileType.Input(
        "profile",
        optional=True,
        tooltip="What ordinary prompts score on this checkpoint. Not connected: found by the checkpoint's fingerprint "
        "among the files in models/memguard.",
    )


def report_outputs() -> list[io.Output]:
    return [
        io.Latent.Output(display_name="latent", tooltip="The latent, unchanged."),
        io.Float.Output(
            display_name="score",
            tooltip="First-step score: L2 norm of the noise gap, mean over images. -1 where there is no score.",
        ),
        io.Float.Output(
            display_name="percentile",
            tooltip="Share of ordinary prompts that score lower, 0 to 100, never beyond n of n + 1. -1 without a "
            "profile or a score.",
        ),
        io.Boolean.Output(
            display_name="memorized",
            tooltip="True where the run looks memorized or may be: exactly where policy stop would end it.",
        ),
        io.String.Output(display_name="verdict", tooltip="ordinary, suspicious, memorized or unknown."),
        io.String.Output(display_name="json", tooltip="The whole report, with the reason where there is no score."),
    ]


def output_of(report: Report, latent: dict, homes: list[str] | None = None) -> io.NodeOutput:
    """Return the outputs of a report; ``homes`` are the ids of further nodes that show it."""
    scored = next((finding for finding in report.findings if finding.score is not None), None)
    percentile = None if scored is None else scored.percentile
    return io.NodeOutput(
        latent,
        NO_SCORE if scored is None else scored.score,
        NO_SCORE if percentile is None else percentile,
        report.flagged,
        report.verdict,
        report.to_json(indent=2),
        ui={"text": [message(report)], "memguard": [report.to_dict()], "memguard_home": homes or []},
    )
