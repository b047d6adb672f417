"""What the MemGuard nodes share: their socket types, their common inputs, and how a report becomes outputs."""

from comfy_api.latest import io

from ..memguard.calibration import Profile
from ..memguard.hosts.comfyui.watcher import Watcher
from ..memguard.records import Report
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


def policy_input() -> io.Input:
    return io.Combo.Input(
        "policy",
        options=["observe", "warn", "stop"],
        default="observe",
        tooltip="observe: score and report, never touch the picture. warn: also show a warning. "
        "stop: end the run after the scored steps if the prompt looks memorized.",
    )


def sensitivity_input() -> io.Input:
    return io.Float.Input(
        "sensitivity",
        default=99.0,
        min=50.0,
        max=99.99,
        step=0.01,
        tooltip="Percentile of ordinary prompts above which a prompt is flagged: 97.7 is a z-score of 2, 99 of 2.33, "
        "99.87 of 3. Needs a profile of the checkpoint (MemGuard Calibrate).",
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
            tooltip="Share of ordinary prompts that score lower, 0 to 100. -1 without a profile or a score.",
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
