"""The three-sample test of data copying (Meehan, Chaudhuri and Dasgupta, AISTATS 2020).

T are training pictures, P held-out pictures of the same source, Q generated ones; d(x) is the distance to the nearest
picture of T. U = #{(q, p): d(q) > d(p)}, ties count one half, and

    Z = (U - m n / 2) / sqrt(m n (m + n + 1) / 12)        (m generated, n held out)

Z far below 0: what is generated lies nearer to the training pictures than new pictures of the source do, which is
copying; far above 0: it does not even come near them. The paper compares with a normal distribution, which takes
generated pictures that are independent and otherwise like real ones. Neither holds here: a model draws in its own way,
and a caption gives several pictures. So the p-value comes from relabelling: a model that did not learn its training
pictures treats them, with their captions, like the held-out pairs. The labels are dealt out anew, pairs of picture and
caption together, and p is the share of deals with a U at least as small (the true one included). That is exact for any
number of pictures under exchangeability, and needs pictures generated from the held-out captions, too.

U asks whether most pictures are copied; a few that are change its ranks little. ``own_p`` is for those: the same deals,
and the mean over training pictures of how near the nearest image of a caption comes to its own picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

DEALS = 9999
FEWEST = 2  # held-out pictures of a cell; Z of fewer says nothing
SHARE = 0.05  # of the generated pictures; the paper leaves cells with fewer out of its average
PER_CELL = 6  # training pictures
CANNOT = (
    "without held-out pictures the training pictures themselves stand in, each measured to the nearest other one; this"
    " cannot tell copying from a model that has learnt a narrow subject or style well, so there is no p-value; keep"
    " some pictures of the same source out of training and give them as --held-out"
)


@dataclass(frozen=True)
class Cell:
    """A part of the training pictures that look alike (k-means), with the test inside it.

    Attributes:
        pictures: numbers of its training pictures.
        generated: how many lie there.
        held: held-out pictures that lie there.
        z: None where too few lie there.

    """

    pictures: tuple[int, ...]
    generated: int
    held: int
    z: float | None


@dataclass(frozen=True)
class ThreeSamples:
    """What the test says.

    Attributes:
        form: "held-out", or "leave-one-out" where there are no held-out pictures.
        u: of all pairs.
        z: below 0 for copying.
        p: one-sided, of the relabelling; None where there is none, and ``note`` says why.
        own_p: one-sided, of the mean distance between pictures and the nearest image of their own captions.
        deals: of the relabelling, the true one included.
        trained: training pictures.
        held: n, held-out pictures.
        generated: m, generated from the captions of training pictures.
        average: C_T of the paper, the mean Z of cells weighed by their held-out pictures; None without cells.
        cells: of the training pictures.
        note: what the numbers cannot say.

    """

    form: Literal["held-out", "leave-one-out"]
    u: float
    z: float
    p: float | None
    own_p: float | None
    deals: int
    trained: int
    held: int
    generated: int
    average: float | None = None
    cells: tuple[Cell, ...] = ()
    note: str = ""


def u_statistic(generated: np.ndarray, held: np.ndarray) -> float:
    """Return #{(q, p): d(q) > d(p)} + #{d(q) = d(p)} / 2 of two rows of distances."""
    ordered = np.sort(held)
    below, upto = (np.searchsorted(ordered, generated, side) for side in ("left", "right"))
    return float((below + upto).sum() / 2)


def z_score(u: float, generated: int, held: int) -> float:
    """Return the standardised U; 0 where one of the samples is empty."""
    pairs = generated * held
    return (u - pairs / 2) / (pairs * (generated + held + 1) / 12) ** 0.5 if pairs else 0.0


def three_samples(
    real: np.ndarray,
    generated: np.ndarray,
    trained: int,
    cells: Sequence[int] | np.ndarray | None = None,
    deals: int = DEALS,
    seed: int = 0,
) -> ThreeSamples:
    """Run the test.

    Args:
        real: distances between real pictures, [N, N], training pictures first.
        generated: distances of the pictures generated from each picture's caption, [N, images, N].
        trained: how many are training pictures; the others are held out, none of them a near duplicate of those.
        cells: the cell of each picture, [N]; None for none.
        deals: of the relabelling.
        seed: of the relabelling.

    """
    total, images = generated.shape[:2]
    held = total - trained
    of_trained = generated[:trained, :, :trained].min(2)
    if not held:
        own = real[:trained, :trained] + np.diag(np.full(trained, np.inf))
        others = own.min(1)
        u = u_statistic(of_trained.ravel(), others)
        z = z_score(u, of_trained.size, trained)
        return ThreeSamples("leave-one-out", u, z, None, None, 0, trained, 0, of_trained.size, note=CANNOT)
    u = _u(real, generated, np.arange(total), trained)
    own = generated[np.arange(total), :, np.arange(total)].min(1)
    near = own[:trained].mean()
    rng = np.random.default_rng(seed)
    as_small = as_near = 1  # the true deal
    for _ in range(deals):
        order = rng.permutation(total)
        # rounding must not part equal deals; U is a multiple of 1/2
        as_small += _u(real, generated, order, trained) <= u + 0.25
        as_near += bool(own[order[:trained]].mean() <= near + 1e-9)
    found = () if cells is None else _cells(real, generated, trained, np.asarray(cells))
    told = [each for each in found if each.z is not None and each.generated >= SHARE * trained * images]
    weight = sum(each.held for each in told)
    average = sum((each.z or 0.0) * each.held for each in told) / weight if weight else None
    z, p, own_p = z_score(u, trained * images, held), as_small / (1 + deals), as_near / (1 + deals)
    note = "" if 1 / (1 + held) < 0.05 else f"{held} held-out pictures are few; 20 or more make the test sharper"
    return ThreeSamples("held-out", u, z, p, own_p, 1 + deals, trained, held, trained * images, average, found, note)


def _u(real: np.ndarray, generated: np.ndarray, order: np.ndarray, trained: int) -> float:
    """Return U of a deal: the first ``trained`` pictures of an order are called training pictures."""
    ours, others = order[:trained], order[trained:]
    of_trained = generated[ours][:, :, ours].min(2).ravel()
    return u_statistic(of_trained, real[np.ix_(others, ours)].min(1))


def _cells(real: np.ndarray, generated: np.ndarray, trained: int, cells: np.ndarray) -> tuple[Cell, ...]:
    nearest, distance = generated[:trained, :, :trained].argmin(2).ravel(), generated[:trained, :, :trained].min(2)
    place = cells[nearest]  # a picture lies in the cell of the training picture next to it
    beyond = real[trained:, :trained]
    held_place, held_distance = cells[beyond.argmin(1)], beyond.min(1)
    found = []
    for cell in np.unique(cells[:trained]):
        ours, theirs = distance.ravel()[place == cell], held_distance[held_place == cell]
        enough = len(theirs) >= FEWEST and len(ours) > 0
        z = z_score(u_statistic(ours, theirs), len(ours), len(theirs)) if enough else None
        members = tuple(np.flatnonzero(cells[:trained] == cell).tolist())
        found.append(Cell(members, len(ours), len(theirs), z))
    return tuple(found)


def cells_of(pictures: np.ndarray, trained: int, seed: int = 0) -> np.ndarray | None:
    """Return the cell of each picture by k-means on the training pictures, int [N]; None for fewer than two cells.

    Args:
        pictures: what stands for each picture, [N, dimensions].
        trained: how many are training pictures.
        seed: of k-means.

    """
    count = min(8, trained // PER_CELL)
    if count < 2:
        return None
    from scipy.cluster.vq import kmeans2, vq

    centres, _ = kmeans2(pictures[:trained].astype(float), count, minit="++", seed=seed, missing="warn")
    found: np.ndarray = vq(pictures.astype(float), centres)[0]
    return found
