"""The search for copies: what it finds at 1 % false matches, how that changes with more references, and its speed.

    python benchmarks/copies.py recall     # threshold from one half of the pictures, recall on the other
    python benchmarks/copies.py filter     # is the right reference among the first, by hash and by coarse windows?
    python benchmarks/copies.py crowd      # false matches against 100 to 10,000 references
    python benchmarks/copies.py speed      # reading, searching, memory; synthetic signatures up to 100,000

A false match is a picture that is no copy of any reference and whose nearest reference, of all of them, reaches the
threshold. A copy is found where its own original is the nearest and reaches it. Intervals are Clopper and Pearson's,
95 %. ``imagehash`` is asked for its phash and dhash of the picture and of its mirror image.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import copies_pictures as pictures
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from memguard.calibration.rates import bound
from memguard.copies import THRESHOLD, alignment, windows
from memguard.copies.index import Index
from memguard.copies.reading import tensor
from memguard.copies.signatures import Thumbnails

RATE = 0.01
KIND = Thumbnails()
Images = list[Image.Image]
Method = Callable[[Images, Images], Tensor]  # queries, references -> similarities [N, M] or nearest ones of them


def interval(count: int, of: int) -> str:
    """Return a share with its interval."""
    low = 1 - bound(of - count, of, 0.975) if count else 0.0
    return f"{count / of:.3f} [{low:.3f}, {bound(count, of, 0.975):.3f}]"


def signatures(images: Images) -> Tensor:
    return KIND.make([tensor(image) for image in images])


def by_windows(queries: Images, references: Images) -> tuple[Tensor, Tensor]:
    """Return the nearest similarity and its place."""
    similarities, places = KIND.open(signatures(references)).nearest(signatures(queries), 1, [None] * len(queries))
    return similarities[:, 0], places[:, 0]


def by_hash(name: str) -> Callable[[Images, Images], tuple[Tensor, Tensor]]:
    def nearest(queries: Images, references: Images) -> tuple[Tensor, Tensor]:
        similarities = hashes(name, queries, references)
        return similarities.max(1)

    return nearest


def hashes(name: str, queries: Images, references: Images) -> Tensor:
    """Return 1 - distance / 64, the larger of the picture's and its mirror image's, [N, M]."""
    import imagehash

    def bits(images: Images) -> Tensor:
        made = [getattr(imagehash, name)(image).hash.flatten() for image in images]
        return torch.from_numpy(np.stack(made)).float() * 2 - 1

    kept = bits(references)
    both = [bits(queries) @ kept.T, bits([ImageOps.mirror(image) for image in queries]) @ kept.T]
    return (torch.maximum(*both) / kept.shape[1] + 1) / 2


def recall(each: int) -> None:
    """Print recall per change on half 1, at the threshold of half 0 and at the shipped one."""
    tuned, held = pictures.half(0, each), pictures.half(1, each)
    print(f"half 0: {len(tuned.originals)} originals, {len(tuned.others)} near misses; ", end="")
    print(f"half 1: {len(held.originals)} and {len(held.others)}", flush=True)
    for name, nearest in {"windows": by_windows, "phash": by_hash("phash"), "dhash": by_hash("dhash")}.items():
        false = nearest(tuned.others, tuned.originals)[0].sort(descending=True).values
        limits = [float(false[int(RATE * len(false))]) + 1e-6]  # 1 % of half 0 at most reach it
        limits += [THRESHOLD] if name == "windows" else []
        print(f"\n| half 1, {name} | " + " | ".join(f"from {limit:.4f}" for limit in limits) + " |")
        print("|---|" + "---|" * len(limits))
        values, _ = nearest(held.others, held.originals)
        _print("false matches", [values >= limit for limit in limits])
        for style in sorted(set(held.styles[1])):
            own = torch.tensor([one == style for one in held.styles[1]])
            _print(f"false matches: {style}", [(values >= limit)[own] for limit in limits])
        for change in pictures.CHANGES:
            values, places = nearest(pictures.copies(held, change, 2), held.originals)
            right = places == torch.arange(len(places))
            _print(change, [(values >= limit) & right for limit in limits])
            for style in sorted(set(held.styles[0])) if change.startswith("text") else ():
                own = torch.tensor([one == style for one in held.styles[0]])
                _print(f"{change}: {style}", [((values >= limit) & right)[own] for limit in limits])


def _print(name: str, passed: list[Tensor]) -> None:
    print(f"| {name} | " + " | ".join(interval(int(one.sum()), len(one)) for one in passed) + " |", flush=True)


def coarse(queries: Images, references: Images) -> Tensor:
    few = [alignment.views(signatures(each), windows.FEW) for each in (queries, references)]
    return alignment.coarse(*few)


def filters(each: int) -> None:
    """Print how often the right reference is among the first 8 and 40."""
    half = pictures.half(1, each)
    ways = {"phash": lambda *both: hashes("phash", *both), "dhash": lambda *both: hashes("dhash", *both)}
    ways["coarse windows"] = coarse
    print(f"{len(half.originals)} references\n\n| right one among the first 8 / 40 | " + " | ".join(ways) + " |")
    print("|---|" + "---|" * len(ways))
    for change in pictures.CHANGES:
        queries = pictures.copies(half, change, 2)
        cells = []
        for way in ways.values():
            order = way(queries, half.originals).argsort(1, descending=True)
            place = (order == torch.arange(len(order))[:, None]).float().argmax(1)
            cells.append(f"{float((place < 8).float().mean()):.3f} / {float((place < 40).float().mean()):.3f}")
        print(f"| {change} | " + " | ".join(cells) + " |", flush=True)


def crowd(each: int) -> None:
    """Print false matches against more and more drawn references of the same styles."""
    rng = np.random.default_rng(77)
    queries = signatures([pictures.drawn(style, rng) for style in pictures.STYLES for _ in range(each)])
    references = signatures([pictures.drawn(style, rng) for _ in range(2000) for style in pictures.STYLES])
    print("| references | false matches at the shipped threshold | nearest: median, 99 % |\n|---|---|---|")
    for count in (100, 300, 1000, 3000, 10_000):
        values = KIND.open(references[:count]).nearest(queries, 1, [None] * len(queries))[0][:, 0]
        wrong = int((values >= THRESHOLD).sum())
        print(
            f"| {count} | {interval(wrong, len(values))} | {values.median():.3f}, {values.quantile(0.99):.3f} |",
            flush=True,
        )


def speed(each: int) -> None:
    """Print pictures per second of reading and searching, and the memory."""
    rng = np.random.default_rng(5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "pictures"
        folder.mkdir()
        large = [pictures.drawn("poster", rng).resize((1024, 1024)) for _ in range(40)]
        for ending, many in (("jpg", {"quality": 90}), ("png", {})):
            for number, image in enumerate(large):
                image.save(folder / f"{number}.{ending}", **many)
            index = Index(folder, KIND, Path(name) / f"{ending}.sqlite")
            started = time.process_time()
            result = index.update()
            spent = time.process_time() - started
            print(f"reading 1024 x 1024 .{ending}: {(result.new) / spent:.0f} pictures per CPU second")
            for path in folder.iterdir():
                path.unlink()
    queries = signatures(pictures.copies(pictures.half(1, 8), "crop to 70-90 %", 3))[:32]
    print("\n| synthetic references | opening, CPU s | pictures per CPU second | memory, MB |\n|---|---|---|---|")
    for count in (1000, 10_000, 100_000):
        made = torch.randint(0, 256, (count, 3, 8, 8), generator=torch.Generator().manual_seed(1)).float()
        made = torch.cat(
            [
                torch.nn.functional.interpolate(part, (32, 32), mode="bicubic").clamp(0, 255).byte()
                for part in made.split(999)
            ]
        )
        started = time.process_time()
        found = KIND.open(made)
        opened = time.process_time() - started
        started = time.process_time()
        found.nearest(queries, 1, [None] * len(queries))
        spent = time.process_time() - started
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"| {count} | {opened:.1f} | {len(queries) / spent:.1f} | {memory:.0f} |", flush=True)
        del found, made


def main() -> int:
    """Run one of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    ways = {"recall": recall, "filter": filters, "crowd": crowd, "speed": speed}
    parser.add_argument("what", choices=ways)
    parser.add_argument("--each", type=int, default=60, help="originals of each drawn style (crowd: queries)")
    options = parser.parse_args()
    ways[options.what](options.each)
    return 0


if __name__ == "__main__":
    sys.exit(main())
