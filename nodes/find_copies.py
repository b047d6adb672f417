"""MemGuard Find Copies: is a picture a copy of one in a folder?"""

from comfy_api.latest import io

from ..memguard.hosts.comfyui import finding
from ..memguard.table import COPIES
from .types import CATEGORY, input_of


class MemGuardFindCopies(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="MemGuard_FindCopies",
            display_name="MemGuard Find Copies",
            category=CATEGORY,
            description="Finds the nearest picture of a folder, such as the training pictures of a LoRA: also where it "
            "was cropped, mirrored, resized, recoloured, framed or written on.",
            inputs=[
                io.Image.Input("image", tooltip="The pictures to look up."),
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="Of the pictures to compare with: a whole path, or a folder below ComfyUI's input folder.",
                ),
                input_of("threshold", COPIES["threshold"]),
            ],
            outputs=[
                io.Image.Output(display_name="nearest", tooltip="The nearest picture to the most similar of image."),
                io.Float.Output(display_name="similarity", tooltip="Of the two: near 1 is the same picture."),
                io.Boolean.Output(display_name="copied", tooltip="True where the similarity reaches the threshold."),
                io.String.Output(display_name="said", tooltip="Similarity and file name, one line for each of image."),
            ],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, folder):
        try:
            finding.folder_of(folder)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, folder, **_):
        return finding.state(folder)

    @classmethod
    def execute(cls, image, folder, threshold):
        matches, update = finding.find(image, folder)
        best = max(matches, key=lambda match: match.similarity)
        lines = [
            f"{match.similarity:.3f} {match.path.name}{' (copy)' if match.similarity >= threshold else ''}"
            for match in matches
        ]
        if update.broken:
            lines.append(f"{len(update.broken)} pictures of the folder cannot be read")
        said = "\n".join(lines)
        return io.NodeOutput(
            finding.picture_of(best), best.similarity, best.similarity >= threshold, said, ui={"text": [said]}
        )


NODES = [MemGuardFindCopies]
