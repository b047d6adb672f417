"""What the MemGuard nodes share: their socket types, their common inputs, and how a report becomes outputs."""

from dataclasses import replace

from comfy_api.latest import io

from ..memguard.calibration import Profile
from ..memguard.hosts.comfyui.treating import Treater
from ..memguard.hosts.comfyui.watcher import Watcher
from ..memguard.mitigations import Mitigation
from ..memguard.records import NeuronSet, Report
from ..memguard.setting import Setting, of
from ..memguard.table import GUARD
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


def input_of(name: str, setting: Setting, *also: str, **more) -> io.Input:
    """Return the widget of a setting.

    Args:
        name: of the input, which saved workflows know.
        setting: its range and sentence; ``unset`` stands for None.
        also: further sentences.
        more: of the input.

    """
    default = setting.unset if setting.default is None else setting.default
    known = {"default": default, "tooltip": " ".join([setting.whole_text, *also]), **more}
    if setting.choices or "options" in more:
        return io.Combo.Input(name, **{"options": list(setting.choices), **known})
    if setting.kind in (float, int):
        low, high = setting.span
        numbers = {"default": default, "min": low, "max": high, "step": setting.step or 1}
        known |= {each: setting.kind(number) for each, number in numbers.items()}
    kinds = {float: io.Float, int: io.Int, bool: io.Boolean, str: io.String}
    return kinds[setting.kind].Input(name, **known)


def inputs_of(mitigation: type, *names: str) -> list[io.Input]:
    """Return the widgets of some of a mitigation's settings, in the order of saved workflows."""
    known = of(mitigation)
    return [input_of(name, known[name]) for name in names]


def seed_input(name: str, tooltip: str) -> io.Input:
    """Return a sampler's seed, which the page changes after each run."""
    return io.Int.Input(name, default=0, min=0, max=SEED_MAX, control_after_generate=True, tooltip=tooltip)


def policy_input(mitigate: bool = False) -> io.Input:
    policy = GUARD["policy"]
    choices = {name: does for name, does in policy.choices.items() if mitigate or name != "mitigate"}
    return input_of("policy", replace(policy, choices=choices))


def before_input() -> io.Input:
    return MitigationType.Input(
        "mitigation",
        optional=True,
        tooltip="Another mitigation, which MemGuard tries before this one; up to three in a row.",
    )


def mitigation_inputs(clip: bool = True) -> list[io.Input]:
    """Return the inputs that all mitigation nodes share, behind their own."""
    encoder = io.Clip.Input(
        "clip",
        optional=True,
        tooltip="The text encoder that the prompt goes through: tells BOS, words and padding apart. Used with model.",
    )
    return [
        *inputs_of(Mitigation, "strength"),
        io.Model.Input(
            "model",
            optional=True,
            tooltip="A model to treat in every run, memorized or not. Not connected: only for MemGuard's mitigation.",
        ),
        *([encoder] if clip else []),
        before_input(),
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


def profile_input() -> io.Input:
    return ProfileType.Input(
        "profile",
        optional=True,
        tooltip=f"{GUARD['profile'].says} Not connected: by the checkpoint's fingerprint among the files in "
        "models/memguard.",
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
