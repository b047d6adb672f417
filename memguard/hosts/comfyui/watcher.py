"""The wrappers that watch a model, and the settings behind one MemGuard node.

OUTER_SAMPLE is one sampling run, SAMPLER_SAMPLE the start of its sampler (policy "mitigate" may start it once more),
PREDICT_NOISE one model call of it, CALC_COND_BATCH the predictions by prompt. All arguments are forwarded as they came:
other packs index them by position. Part of the ComfyUI host.
"""

from __future__ import annotations

from contextvars import ContextVar
from functools import partial
from typing import Any

import comfy.sampler_helpers
import torch
from comfy.model_management import InterruptProcessingException
from torch import Tensor

from ...guard import Guard, Run, Sink
from ...records import Report
from ...troubles import careful
from ...wording import message
from . import graph, known, model, roles, schedule, screen, texts, treating
from .calls import SHAPES
from .continuing import Place
from .explanation import Explanation, When
from .kept import KeptMaps
from .latents import store
from .naming import confirmed
from .prompts import Prompts, behind
from .sampling import Sampling

KEY = "memguard"
SHOWN = ("run", "prompt", "findings", "error", "curve", "attribution", "maps")  # of a report, on the page
KINDS = treating.KINDS
CHANGED = "no text of the workflow encodes to this run's prompt with the connected clip, so the report names none"

# The runs in progress, innermost last. A context variable belongs to one thread; a run inside a run stacks.
_running: ContextVar[tuple[Sampling, ...]] = ContextVar("memguard_running", default=())


def unwatched(patcher: Any) -> Any:
    """Return a clone of a model that no guard watches."""
    clone = patcher.clone()
    for kind in KINDS:
        clone.remove_wrappers_with_key(kind, KEY)
    return clone


class Watcher:
    """One guard on one or more models; its wrappers travel along when later nodes clone the model.

    Args:
        guard: what to ask and what to do; the page becomes its sink, and tells the sink that it had.
        empty: CONDITIONING of the empty prompt, for reference "empty".
        silent: whether runs are neither shown nor filed.
        home: id of the node whose badge shows the reports; None is the sampler.
        clip: CLIP that encodes the prompt, for the words and maps of a run; None explains nothing.
        explain: which runs to explain.

    """

    def __init__(
        self,
        guard: Guard,
        empty: Any = None,
        silent: bool = False,
        home: str | None = None,
        clip: Any = None,
        explain: When = "flagged",
    ) -> None:
        self.guard = guard
        self.empty = empty
        self.home = home
        self.clip, self.explain = clip, explain
        self.settings = repr(
            (
                guard.detectors,
                guard.policy,
                guard.mitigation,
                guard.steps,
                guard.sensitivity,
                guard.reference,
                guard.profile,
                empty is None,
                explain if clip is not None else "never",
            )
        )
        self.silent = silent
        if not silent:
            sink = guard.sink
            guard.sink = _Screen(self, sink.sink if isinstance(sink, _Screen) else sink)

    def __deepcopy__(self, memo: dict[int, Any]) -> Watcher:
        """A copy of a model is watched by the same guard."""
        return self

    def install(self, patcher: Any) -> Any:
        """Return a clone of the model that is watched; a guard that watched it before is replaced."""
        clone = unwatched(patcher)
        for kind, wrapper in zip(KINDS, (self._outer, self._sample, self._predict, self._calc), strict=True):
            clone.add_wrapper_with_key(kind, KEY, wrapper)
        return clone

    def report_of(self, latent: Any) -> Report:
        """Return the report of the run that made a latent, or one that says why there is none."""
        return store.find(self.settings, latent, screen.place()[0])

    def _outer(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        run = self.guard.begin(host="comfyui")
        token = _running.set(_running.get())
        sampling, latent = None, None
        try:
            with run.careful(InterruptProcessingException):
                guider, sigmas = executor.class_obj, args[3] if len(args) > 3 else None
                sampling = Sampling(run, guider, sigmas, self._explanation(), self._prompts(guider))
                _running.set((*_running.get(), sampling))
                self._learn(sampling, args, kwargs)
            made = executor(*args, **kwargs)
            if sampling is not None:
                with run.careful(InterruptProcessingException):
                    sampling.over()
            latent = made
            return made
        except BaseException as error:
            run.learn(notes=(*run.report.notes, f"the run ended early: {type(error).__name__}"))
            raise
        finally:
            _running.reset(token)
            self._close(run, sampling, latent)

    def _learn(self, sampling: Sampling, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Tell a run what is known before its first model call."""
        prompt_id, node_id = screen.place()
        # a MemGuard node from the cache may have another id than when it ran
        self.home = graph.guard(screen.running_prompt(prompt_id), node_id) or self.home
        sampling.run.learn(**_facts(sampling.guider, *args, **kwargs))
        if self.guard.profile is None:  # whoever gives a profile says that it holds
            sampling.run.learn(model=model.sampled(sampling.guider.model_patcher))
        sampling.seen.from_nothing = not bool(torch.count_nonzero(args[1]))
        if not self.silent:
            sampling.place = Place(sampling.run, sampling.guider, args[1])
        self._lend_empty_prompt(sampling)

    def _close(self, run: Run, sampling: Sampling | None, latent: Any) -> None:
        """File and show a run that is over; the picture is there, so nothing here may raise."""
        with careful(run.noted):
            run.learn(notes=(*run.report.notes, *treating.lines()))
        with careful(run.noted):
            if sampling is not None:
                self._confirm(sampling)
                if sampling.place is not None:
                    run.learn(notes=(*run.report.notes, *sampling.place.notes()))
        report = None
        with careful(run.noted):
            report = None if sampling is None else sampling.finish(partial(_keep, sampling, latent))
        report = report or run.finish()  # an action is told, whatever of its report broke
        if self.silent:
            return
        with careful(run.noted):
            report = known.noted(report, self.home)
        with careful(run.noted):
            store.put(self.settings, latent, screen.place()[0], report)
        with careful(run.noted):
            if sampling is not None and sampling.place is not None:
                sampling.place.leave(latent)

    def _confirm(self, sampling: Sampling) -> None:
        """Name the prompt by the text that encodes to it, where the graph alone cannot tell."""
        prompt_id, node_id = screen.place()
        known = texts.of(screen.running_prompt(prompt_id), node_id, roles.PROMPT, screen.index())
        for cond in sampling.silent:
            named = self.clip is not None and known.found and "cross_attn" in cond
            text = confirmed(self.clip, known.found, [cond["cross_attn"]]) if named else None
            sampling.run.learn(notes=(*sampling.run.report.notes, schedule.line(cond, text)))
        vectors = [cond["cross_attn"] for cond in sampling.guider.conds.get(roles.PROMPT, ()) if "cross_attn" in cond]
        if self.clip is None or not known.found or (known.sure and known.plain) or not vectors or self.silent:
            return
        run = sampling.run
        found = confirmed(self.clip, known.found, vectors)
        if found is None and run.report.prompt is not None:
            run.learn(notes=(*run.report.notes, CHANGED))
        run.learn(prompt=found)

    def _explanation(self) -> Explanation | None:
        if self.clip is None or self.explain == "never":
            return None
        return Explanation(self.clip, behind(), self.explain)

    def _prompts(self, guider: Any) -> Prompts | None:
        return Prompts(self.clip, behind(), guider) if self.guard.policy == "mitigate" else None

    def _sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        stack = _running.get()
        if not stack or stack[-1].guider is not args[0]:
            return executor(*args, **kwargs)
        return stack[-1].sample(executor, *args, **kwargs)

    def _predict(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        stack = _running.get()
        if not stack or stack[-1].guider is not executor.class_obj:
            return executor(*args, **kwargs)
        return stack[-1].predict(executor, *args, **kwargs)

    def _calc(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        stack = _running.get()
        return stack[-1].evaluate(executor, *args, **kwargs) if stack else executor(*args, **kwargs)

    def _lend_empty_prompt(self, sampling: Sampling) -> None:
        """Give the run an empty prompt as one more role, unless a role that it has is the empty prompt already."""
        if self.guard.reference != "empty" or self.empty is None:
            return
        empty = comfy.sampler_helpers.convert_cond(self.empty)
        for cond in empty:
            cond["prompt_type"] = "negative"
        conds = sampling.guider.conds
        if roles.NEGATIVE in conds and roles.same_prompt(empty, conds[roles.NEGATIVE]):
            sampling.seen.negative_is_empty = True
        else:
            conds[roles.EMPTY] = empty


def _keep(sampling: Sampling, latent: Any, maps: dict[str, Tensor]) -> tuple[str, ...]:
    """Keep a run's maps for the page and for MemGuard Overlay; return the names of those that are kept."""
    if not maps:
        return ()
    height, width = next(iter(maps.values())).shape[-2:]
    colours = sampling.guider.model_patcher.model.latent_format
    if isinstance(latent, torch.Tensor):
        latent = sampling.run.evidence[0].layout.parts(latent)[0]
    kept: tuple[str, ...] = ()
    with careful(sampling.run.noted):  # a screen must not cost the picture
        own = KeptMaps((height, width), maps, latent, colours, owner=screen.owner())
        store.keep_maps(sampling.run.report.run, own)
        kept = tuple(maps)
    return kept


class _Screen:
    """Sends a report once when its verdict is known, and again only if the end changed it; ``sink`` gets each one."""

    def __init__(self, watcher: Watcher, sink: Sink | None) -> None:
        self._watcher, self.sink = watcher, sink
        self._shown: Report | None = None

    def __call__(self, report: Report) -> None:
        try:
            self._show(report)
        finally:
            if self.sink is not None:
                self.sink(report)

    def _show(self, report: Report) -> None:
        last, self._shown = self._shown, report
        if last is None or any(getattr(last, name) != getattr(report, name) for name in SHOWN):
            again = last is not None and (last.run, message(last)) == (report.run, message(report))
            screen.show(report, self._watcher.home, again)


def _facts(guider: Any, noise: Any, latent: Any, sampler: Any, sigmas: Any, *rest: Any, **named: Any) -> dict[str, Any]:
    """Return what is known of a run before its first model call, as fields of Report."""
    patcher = guider.model_patcher
    prompt_id, node_id = screen.place()
    nodes = screen.running_prompt(prompt_id)
    denoise_mask = rest[0] if rest else named.get("denoise_mask")
    seed = rest[3] if len(rest) > 3 else named.get("seed")
    width, height = model.pixels(patcher, (named.get(SHAPES) or [noise.shape])[0])
    notes = model.remarks(patcher, [cond for part in guider.conds.values() for cond in part or ()])
    if denoise_mask is not None:
        notes += ("a noise mask is set: only a part of the picture is repainted; the score is of the whole",)
    if getattr(guider, "cfg2", None) is not None:
        notes += ("two prompts (DualCFG): cond1 is scored against the negative prompt, cond2 is not scored",)
    return {
        "host_version": _host_version(),
        "model": model.name_of(patcher),
        "family": model.family(patcher),
        "prompt": texts.of(nodes, node_id, "positive", screen.index()).prompt,
        "negative_prompt": texts.of(nodes, node_id, "negative", screen.index()).prompt,
        "seeds": () if seed is None else (int(seed),),
        "sampler": graph.sampler_name(nodes, node_id) or _sampler_name(sampler),
        "steps": len(sigmas) - 1,
        "cfg": getattr(guider, "cfg1", getattr(guider, "cfg", None)),
        "width": width,
        "height": height,
        "notes": notes,
    }


def _sampler_name(sampler: Any) -> str:
    function = getattr(sampler, "sampler_function", None)
    return getattr(function, "__name__", type(sampler).__name__).removeprefix("sample_").removesuffix("_function")


def _host_version() -> str:
    try:
        from comfyui_version import __version__
    except ImportError:
        return ""
    return __version__
