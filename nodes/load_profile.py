"""MemGuard Load Profile: a profile by file name, for when the one found by fingerprint is not the wanted one."""

from comfy_api.latest import io

from ..memguard.calibration import Profile, ProfileError
from ..memguard.hosts.comfyui import profiles
from .types import CATEGORY, ProfileType

NONE = "none yet: run MemGuard Calibrate"


class MemGuardLoadProfile(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_LoadProfile",
            display_name="MemGuard Load Profile",
            category=CATEGORY,
            description="Loads a profile from models/memguard. MemGuard finds the right one by itself; this is for "
            "choosing another.",
            inputs=[
                io.Combo.Input("name", options=profiles.names() or [NONE], tooltip="A file below models/memguard."),
            ],
            outputs=[ProfileType.Output(display_name="profile", tooltip="For MemGuard's profile input.")],
        )

    @classmethod
    def validate_inputs(cls, name):
        try:
            profiles.path_of(name)
        except ProfileError as error:
            return str(error)  # ComfyUI 0.3 does not check a V3 node's list itself
        return True

    @classmethod
    def fingerprint_inputs(cls, name):
        return profiles.path_of(name).stat().st_mtime

    @classmethod
    def execute(cls, name):
        return io.NodeOutput(Profile.read(profiles.path_of(name)))


NODES = [MemGuardLoadProfile]
