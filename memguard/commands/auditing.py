"""One audit in progress: the folder read, the model loaded, a checkpoint at a time, and the report after each."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ..audit import checkpoints, findings, record
from ..audit.folder import Folder, held_out, read_folder
from ..audit.likeness import FLOOR
from ..audit.making import Making
from ..audit.page import html
from ..audit.reals import gathered
from ..copies.signatures import Signatures
from ..hosts.diffusers import loras, pipes
from ..lists import BadInput, files
from ..lists.rows import difference
from ..texts import shown, writable
from ..troubles import NotFinite, Refused, Told, of_pipeline
from . import common, lines, models
from .piped import Piped

log = logging.getLogger("memguard")

AUDIT, REPORT, IMAGES, LOCK = "audit.json", "report.html", "images", ".audit.lock"
IMAGE = re.compile(r"[0-9a-f]{16}/\d{5}\.png")  # inside IMAGES
EVERY = 2.0  # seconds between looks into a watched folder


class Auditing:
    """An audit; a context manager that holds the folder of the report for this process alone.

    Args:
        args: of the command.

    Attributes:
        audit: what was found so far.
        expected: how many checkpoints are to come, for the lines that say how far it is; 0 where nobody knows.

    Raises:
        BadInput: for folders, files or a model that cannot be used.

    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder = read_folder(args.data)
        self.held = Folder((), ()) if args.held_out is None else held_out(read_folder(args.held_out))
        files.folder(args.out)
        self._lock: BinaryIO = files.locked((args.out / LOCK).open("ab"), args.out)
        try:
            self._begin(args)
        except BaseException:
            self._release()
            raise

    def _begin(self, args: argparse.Namespace) -> None:
        self._old = self._begun(args.out)
        kind, floor = _kind(args)
        self._kind_name = "low resolution" if kind is None else kind.kind
        notes = [*self.folder.notes, *self.held.notes]
        self.reals, self.groups, left = gathered(self.folder, self.held, args.limit, args.seed, kind)
        for note in (*notes, *left):
            print(f"memguard audit: {note}", file=sys.stderr)
        with models.quiet():
            self.pipe = models.load_model(args)
        if getattr(self.pipe, "vae", None) is None:
            raise BadInput(f"{args.model}: has no autoencoder that diffusers knows, so it makes no pictures")
        self.making = Making(
            args.num_images, args.num_inference_steps, args.guidance_scale, args.height, args.width, args.seed
        )
        self.floor = floor if args.threshold is None else args.threshold
        self.audit = record.Audit(self._model(), self._settings(), (), self.groups, (*notes, *left))
        self._before: findings.Before | None = None
        self._added: set[str] = set()
        self.expected = 0
        if self._old is not None:
            differs = difference(self._old.settings, self.audit.settings)
            if differs or self._old.model != self.audit.model:
                raise BadInput(f"{args.out / AUDIT}: {differs or 'it is of another model'}; --resume needs the same")
            # what is not named now, or was deleted by its trainer, stays; what failed holds no results to keep
            self.audit = replace(
                self.audit, checkpoints=tuple(each for each in self._old.checkpoints if not each.error)
            )

    def __enter__(self) -> Auditing:
        return self

    def __exit__(self, *_: object) -> None:
        self._release()

    def _release(self) -> None:
        self._lock.close()
        (self.args.out / LOCK).unlink(missing_ok=True)

    def add(self, path: Path, name: str) -> record.Checkpoint:
        """Audit one file, unless the report holds it already, and write the report; return what is said of it."""
        name, digest, age = writable(name), checkpoints.digest(path), checkpoints.age(path)
        kept = [each for each in (self._old.checkpoints if self._old else ()) if each.digest == digest]
        if kept and not kept[0].error:
            found = replace(kept[0], name=name, age=age)
        else:
            try:
                found = self._checked(path, name, digest, age)
            except MemoryError:
                raise
            except Exception as error:
                said = str(error) if isinstance(error, Told) else of_pipeline(error)
                said = said if said.startswith((f"{name}: ", f"{path.name}: ")) else f"{name}: {said}"
                found = record.Checkpoint(name, digest, age, error=said)
                log.debug("%s", name, exc_info=True)
                print(shown(f"memguard audit: {said}"), file=sys.stderr)
        self._place(name, digest)
        self._added.add(name)
        entries = sorted([*self.audit.checkpoints, found], key=checkpoints.place)
        self.audit = replace(self.audit, checkpoints=tuple(entries))
        self._write()
        if not found.error and (self.expected or self.args.json):  # a watch prints its own
            many = f" ({len(self._added)} of {self.expected} checkpoints)" if self.expected > 1 else ""
            lines.say(f"memguard audit: {name}: {found.copied} of {len(found.pictures)} copied{many}")
        return found

    def _place(self, name: str, digest: str) -> None:
        """Make place: a file that is saved anew stands for what it was, and one that was renamed for its old name."""
        before = self.audit.checkpoints
        old = next((each for each in before if each.name == name), None)
        if old is not None and old.digest != digest:
            said = f"memguard audit: {name}: is another file than before; its results are made anew"
            print(shown(said), file=sys.stderr)

        def goes(each: record.Checkpoint) -> bool:
            renamed = old is None and each.digest == digest and each.name not in self._added
            return each.name == name or renamed

        self.audit = replace(self.audit, checkpoints=tuple(each for each in before if not goes(each)))

    def end(self) -> None:
        """Say which checkpoints that failed before are no longer in the report."""
        there = {value for each in self.audit.checkpoints for value in (each.name, each.digest)}
        for each in self._old.checkpoints if self._old else ():
            if each.error and not there & {each.name, each.digest}:
                said = f"{each.name}: could not be audited before and is not named now; it is left out"
                print(shown(f"memguard audit: {said}"), file=sys.stderr)

    def watch(self, folder: Path, idle: float | None) -> None:
        """Audit what a trainer saves, until Ctrl-C, or until nothing came for ``idle`` minutes."""
        watched, last = checkpoints.Watched(folder), time.monotonic()
        end = "Ctrl-C ends it" if idle is None else f"it ends when none came for {idle:g} minutes, or with Ctrl-C"
        waits = f"memguard audit: waits for LoRAs (.safetensors) that are saved in {folder}; {end}"
        print(shown(waits), file=sys.stderr, flush=True)
        try:
            while idle is None or time.monotonic() - last < 60 * idle:
                for path in watched.ready():
                    done = self.add(path, path.relative_to(folder).as_posix())
                    if not done.error and not self.args.json:
                        print(shown(f"{done.name}: {done.copied} of {len(done.pictures)} copied"), flush=True)
                    last = time.monotonic()
                time.sleep(EVERY)
        except KeyboardInterrupt:
            print("memguard audit: no longer watching", file=sys.stderr)
        if not self.audit.checkpoints:
            raise BadInput(f"{folder}: no LoRA was saved there")

    def _checked(self, path: Path, name: str, digest: str, age: checkpoints.Age) -> record.Checkpoint:
        if self.args.checkpoint:
            arguments = argparse.Namespace(**vars(self.args) | {"model": str(path)})
            with models.quiet():
                pipe = models.load_model(arguments)
        else:
            pipe = self.pipe
            lora = loras.fitted(pipe, loras.read(path), name)
            for line in lora.remark(name):
                print(shown(f"memguard audit: {line}"), file=sys.stderr)
                self.audit = replace(self.audit, notes=tuple(dict.fromkeys((*self.audit.notes, line))))
        before = self._without()
        images = self.args.out / IMAGES / digest

        def keep(index: int, picture: np.ndarray) -> str:
            return self._kept(images, index, picture)

        with nullcontext() if self.args.checkpoint else loras.applied(pipe, lora):
            after = findings.trained(Piped(pipe, self.making, f"{shown(name)}: "), self.reals, keep)
        return findings.checkpoint(name, digest, age, self.reals, after, before, self.floor, self.args.deals)

    def _without(self) -> findings.Before:
        """Return what the base does, made once."""
        done = [each for each in (self._old.checkpoints if self._old else ()) if not each.error]
        if self._before is None and done:
            rows = done[0].pictures
            self._before = findings.Before([p.score_before for p in rows], np.array([p.own_before for p in rows]))
        if self._before is None:
            try:
                self._before = findings.without(Piped(self.pipe, self.making, "without the training: "), self.reals)
            except NotFinite as error:
                raise BadInput(f"{self.args.model}: without the training, {error}") from None
        return self._before

    def _kept(self, images: Path, index: int, picture: np.ndarray) -> str:
        path = images / f"{index:05d}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
        except OSError as error:
            raise files.unwritable(path, error) from None
        return path.relative_to(self.args.out).as_posix()

    def _begun(self, out: Path) -> record.Audit | None:
        """Return the audit that a folder holds, for --resume; the folder is new, empty or of an audit."""
        rest = {each.name for each in out.iterdir() if each.name != LOCK}
        if not rest or rest == {IMAGES} and _are_ours(out / IMAGES):  # interrupted before it had a result
            return None
        try:
            old = record.read((out / AUDIT).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise BadInput(f"{out}: is not empty and holds no audit; give a new folder") from None
        if not self.args.resume:
            raise BadInput(f"{out}: holds an audit; continue it with --resume, or give a new folder")
        files.target(out / REPORT, files.is_page)
        return old

    def _write(self) -> None:
        for name, text in ((AUDIT, self.audit.to_json()), (REPORT, html(self.audit, self._all(), self.args.out))):
            target, part = self.args.out / name, self.args.out / f"{name}.part"
            try:
                part.write_text(text, encoding="utf-8", newline="\n")
                os.replace(part, target)
            except OSError as error:
                raise files.unwritable(target, error) from None
            finally:
                part.unlink(missing_ok=True)

    def _all(self) -> Folder:
        return Folder((*self.folder.pictures, *self.held.pictures), ())

    def _model(self) -> str:
        return pipes.name_of(pipes.text_to_image(self.pipe))

    def _settings(self) -> dict[str, Any]:
        """Return what an audit depends on, besides the model."""
        names = "num_images num_inference_steps guidance_scale height width seed limit deals"
        kept = common.kept(self.args, names)
        kept |= {"similarity": self._kind_name}
        kept |= {"threshold": self.floor, "number format": str(next(self.pipe.vae.parameters()).dtype)[6:]}
        kept |= {"sampler": type(self.pipe.scheduler).__name__, "trained": self.reals.trained}
        return kept | {"held out": len(self.reals.pictures) - self.reals.trained, "data": self.reals.digest}


def _are_ours(images: Path) -> bool:
    """Whether a folder holds images of an audit and nothing else."""
    found = (each for each in images.rglob("*") if not each.is_dir())
    return images.is_dir() and all(IMAGE.fullmatch(each.relative_to(images).as_posix()) for each in found)


def _kind(args: argparse.Namespace) -> tuple[Signatures | None, float]:
    """Return what pictures are compared by, None for low resolution, and its threshold."""
    if args.embedding is None:
        return None, FLOOR
    from ..copies.embedding import SSCD_THRESHOLD, Embedding

    try:
        with models.quiet():
            return Embedding(args.embedding, args.embedding_size, "cpu"), SSCD_THRESHOLD
    except Refused as error:
        raise BadInput(str(error)) from None
