"""ComfyUI's door: the web folder and a lazy entry point. Imports nothing of a host, so that tests can import it too."""

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint():
    from .nodes import MemGuardExtension

    return MemGuardExtension()
