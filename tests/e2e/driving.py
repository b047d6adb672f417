"""What a person does in the page: open it, open an example, press Run and wait for the end."""

from __future__ import annotations

from .browser import Browser
from .comfyui import Server

READY = "window.app?.extensionManager && window.app.canvas && document.querySelector('canvas') && true"


def open_page(browser: Browser, server: Server) -> None:
    """Open ComfyUI's page."""
    browser.send("Page.navigate", url=server.url)
    browser.wait(READY, 300)  # a busy machine


def open_example(browser: Browser, name: str, steps: int | None = None, seed: int | None = None) -> None:
    """Open an example workflow from the templates, with other steps or another seed if given."""
    browser.run(
        f"""const reply = await fetch("/api/workflow_templates/memguard/{name}.json");
        await app.loadGraphData(await reply.json(), true, true, "{name}");"""
    )
    for widget, value in (("steps", steps), ("seed", seed)):
        if value is not None:
            browser.run(
                f"""const sampler = app.graph.nodes.find((node) => node.type === "KSampler");
                sampler.widgets.find((widget) => widget.name === "{widget}").value = {value};"""
            )


def press_run(browser: Browser, seconds: float = 400) -> None:
    """Queue the open workflow and wait for its end, good or bad."""
    browser.run(
        """window.ended = false;
        app.api.addEventListener("executing", ({ detail }) => { if (!detail) window.ended = true; });
        app.api.addEventListener("execution_error", () => { window.ended = true; });
        await app.extensionManager.command.execute("Comfy.QueuePrompt");
        // software rendering would take the processor from the sampler
        setTimeout(() => { app.canvas.pause_rendering = true; }, 500);"""
    )
    browser.wait("window.ended", seconds)
    browser.run(
        """await new Promise((done) => setTimeout(done, 1000));
        app.canvas.pause_rendering = false;
        app.canvas.setDirty(true, true);"""
    )
