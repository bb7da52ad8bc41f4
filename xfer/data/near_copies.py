"""Find near copies: pictures saved, resized, cropped, mirrored, rotated, recoloured or marked again.

Candidates are pairs with similar low frequencies. The two pictures of each are aligned, and their details compared:
copies share the details, while different photos of the same kind of thing share the outlines at most.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Thumbnails = NDArray[np.float16]
"""Brightness of N images, [N, SIDE, SIDE], 0 to 255."""
Indices = NDArray[np.int64]

SIDE = 32
"""Side of a thumbnail in pixels."""

MIN_DETAIL = 1.5
"""Minimum standard deviation of the details of a thumbnail, of 255. Plainer pictures cannot be told apart."""

FREQUENCIES = 6
"""Number of frequencies per axis in a descriptor. With more of them, cropped copies are not among the candidates."""

MIN_COSINE, MIN_COSINE_TURNED = 0.5, 0.8
"""Minimum cosine between the descriptors of candidates that are upright or mirrored, and of those that are turned or
upside down. The latter are compared without alignment, so they need not be cropped."""

MAX_CANDIDATES, MAX_CANDIDATES_IN_ALL = 16, 100_000
"""Maximum number of candidates per image, those of the highest cosines; more if there are fewer in all than the second
number. Comparing one takes about 0.4 ms on a busy core: 55 s for 8,144 photos, 3 s for 600. The time is linear in the
number of images."""

MIN_OUTLINE = 0.75
"""Minimum correlation of blurred thumbnails after a rough alignment. The details of other pairs are not compared."""

MAX_SCALE, MAX_STRETCH, MAX_SHEAR = 1.4, 1.25, 0.25
"""Maximum enlargement or reduction of an alignment, ratio between both axes, and shear. Beyond it, one starfish is
stretched to look like another."""

MIN_SPREAD, MIN_SPREAD_OF_DRAWINGS = 0.42, 0.6
"""Minimum of how evenly the details are spread that two pictures share (see `_shared_spread`). Below it they share
outlines at most: shapes, line drawings, things on plain ground. The second counts for data sets in which more pairs of
equal outlines differ than pairs with equal details are found. It is below the first in 5% of the copies of photos."""

MAX_SMALL_WARP = 0.2
"""Maximum change of a warp's entries from the identity for pictures that share outlines only: 10% of a side."""

MAX_DIFFERENCE, MAX_DIFFERENCE_UNALIGNED = 9.0, 5.0
"""Maximum root mean square difference in brightness, of 255, between near copies that share outlines only: after a
small alignment, and without one. The second counts if more pairs with equal outlines differ than agree: among 200
drawings of circles, squares and triangles hundreds of pairs have equal outlines, and hardly any are copies."""

MIN_SCORES = (0.88, 0.92, 0.96)
"""Minimum correlation of the details of near copies. The first is used unless pairs of slightly lower scores are many.

Measured on 2026-11-30 on 200 photos of five sets (insects, dogs and cats, a cartoon, Caltech-101, cars), these
fractions of the changed copies are found:

- all: saved as JPEG of quality 30 to 95, a third to twice the size, squashed, mirrored, upside down, turned by 90
  degrees, grey, noisy (standard deviation 25 of 255), blurred;
- 98% to 99%: up to 10% cut off each side at random, 5% off all sides, mirrored and cropped, turned by 3 or 5 degrees,
  in a border of 5%;
- 96% to 98%: 10% off two sides, brighter, darker, other contrast;
- 92%: other colours, 10% off all sides, several of these changes;
- 90% turned by 10 degrees; 78% to 85% in a border of 10%; 85% with a band and text across the middle;
- 27% padded to a square; none with 15% off all sides, or inverted.

Pairs found in the sets themselves: none in 397 photos of insects and 400 of dogs and cats; one in 335 cars, a press
photo; 15 in 660 frames of a cartoon, all of one scene each; 16 in 550 of Caltech-101, the same picture but for one
pair of pianos. Enlarged to 64 px, 1,797 digits have none, and 3,000 drawings four."""

UNCERTAIN_BELOW, MAX_UNCERTAIN = 0.1, 0.1
"""Width of the interval below the minimum score in which pairs count as uncertain, and how many of them, as a fraction
of the number of images, are accepted unless near copies are more. Drawings and digits have hundreds of times as many:
their scores have no gap."""

BLOCKS = 4
"""Number of blocks per axis whose details are compared one by one."""

CHUNK = 512
"""Number of rows, or pairs, that are compared at a time."""

TURNS = ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1))
"""Whether to transpose, turn upside down and mirror a picture."""

UPRIGHT = 2
"""Number of turns, from the first, that keep up and down."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of images: indices [P] of both, the turn that makes the second one look like the first, and a score."""

    first: Indices
    second: Indices
    turn: Indices
    score: Array

    def select(self, chosen: NDArray[Any]) -> Pairs:
        """Return the pairs at some indices, or where a mask is true."""
        return Pairs(self.first[chosen], self.second[chosen], self.turn[chosen], self.score[chosen])


@dataclass(frozen=True, eq=False)
class _Comparison:
    """What is measured of aligned pairs."""

    pairs: Pairs
    """The score is the correlation of the details."""
    spread: Array
    """[P], how evenly the details that both share are spread over the picture; see `_shared_spread`."""
    difference: Array
    """[P], difference in brightness after a small alignment, of 255; infinite after a large one."""
    unaligned: Array
    """[P], the same without alignment; infinite if the details differ."""


def make_thumbnail(pixels: NDArray[np.uint8]) -> Thumbnails:
    """Return the thumbnail [SIDE, SIDE] of RGB pixels, [S, S, 3] with S a multiple of SIDE."""
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    factor = len(grey) // SIDE
    thumbnail: Thumbnails = grey.reshape(SIDE, factor, SIDE, factor).mean(axis=(1, 3)).astype(np.float16)
    return thumbnail


def has_detail(thumbnail: Thumbnails) -> bool:
    """Return whether a picture has enough contrast to be compared with others."""
    return bool(_details(thumbnail[None].astype(np.float32)).std() >= MIN_DETAIL)


def find_candidates(thumbnails: Thumbnails) -> Pairs:
    """Return pairs of images with similar low frequencies, first < second; the score is their cosine.

    The time is quadratic in the number of images, the memory linear.
    """
    count = len(thumbnails)
    descriptors = _describe(thumbnails)
    turned = [_turn_frequencies(descriptors, turn).reshape(count, FREQUENCIES**2) for turn in range(len(TURNS))]
    most = max(MAX_CANDIDATES, MAX_CANDIDATES_IN_ALL // max(1, count))
    found: list[Pairs] = []
    for start in range(0, count, CHUNK):
        rows = turned[0][start : start + CHUNK]
        chunk: list[Pairs] = []
        for turn, columns in enumerate(turned):
            cosine = rows @ columns[start:].T
            first, second = np.nonzero(cosine >= (MIN_COSINE if turn < UPRIGHT else MIN_COSINE_TURNED))
            later = second > first
            first, second = first[later], second[later]
            chunk.append(Pairs(first + start, second + start, np.full(len(first), turn), cosine[first, second]))
        pairs = _join(chunk)
        order = np.lexsort((-pairs.score, pairs.first))
        rank = np.arange(len(order)) - np.searchsorted(pairs.first[order], pairs.first[order])
        found.append(pairs.select(order[rank < most]))
    return _join(found)


def find_near_copies(thumbnails: Thumbnails, candidates: Pairs) -> Pairs | None:
    """Return the candidates that are near copies, with the correlation of their details as score.

    Returns:
        The pairs; None if near copies cannot be told from pictures that only look alike.
    """
    chunks = [slice(start, start + CHUNK) for start in range(0, len(candidates.first), CHUNK)]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as threads:
        compared = [*threads.map(lambda chunk: _compare(thumbnails, candidates.select(chunk)), chunks)]
    pairs = _join([each.pairs for each in compared])
    if not len(pairs.first):
        return pairs
    spread, difference, unaligned = (
        np.concatenate([getattr(each, name) for each in compared]) for name in ("spread", "difference", "unaligned")
    )
    alike = pairs.score >= MIN_SCORES[0]
    outlines = spread < MIN_SPREAD
    close = outlines & alike & (difference <= MAX_DIFFERENCE)
    rejected = int((outlines & alike & ~close).sum())
    if rejected > (~outlines & alike).sum():
        outlines = spread < MIN_SPREAD_OF_DRAWINGS
    if rejected > close.sum():
        close = outlines & (unaligned <= MAX_DIFFERENCE_UNALIGNED)
    detailed = pairs.select(~outlines)
    for limit in MIN_SCORES:
        near = int((detailed.score >= limit).sum())
        uncertain = int((detailed.score >= limit - UNCERTAIN_BELOW).sum()) - near
        if uncertain <= max(near, MAX_UNCERTAIN * len(thumbnails)):
            return pairs.select(close | (~outlines & (pairs.score >= limit)))
    return None


def _join(pairs: Sequence[Pairs]) -> Pairs:
    none = np.empty(0, dtype=np.int64)
    every = [Pairs(none, none, none, none.astype(np.float32)), *pairs]
    columns = zip(*((each.first, each.second, each.turn, each.score) for each in every), strict=True)
    first, second, turn, score = map(np.concatenate, columns)
    return Pairs(first, second, turn, score)


def _compare(thumbnails: Thumbnails, pairs: Pairs) -> _Comparison:
    """Compare the details of the pairs whose outlines agree."""
    first, second = (thumbnails[indices].astype(np.float32) for indices in (pairs.first, pairs.second))
    for turn in np.unique(pairs.turn):
        chosen = pairs.turn == turn
        second[chosen] = _turn(second[chosen], int(turn))
    same = np.tile(np.eye(2, 3, dtype=np.float32), (len(first), 1, 1))
    warps, outline = _align(_blur(_shrink(first), 1.0), _blur(_shrink(second), 1.0), same, 6)
    kept = np.flatnonzero((outline >= MIN_OUTLINE) | (pairs.turn >= UPRIGHT))
    first, second, warps, same, pairs = first[kept], second[kept], warps[kept], same[kept], pairs.select(kept)
    warps, _ = _align(_blur(first, 0.8), _blur(second, 0.8), warps, 5)
    usable = (pairs.turn < UPRIGHT) & _is_plausible(warps)
    details = _details(first), _details(second)
    unaligned, aligned = _score(*details, same), np.where(usable, _score(*details, warps), -1)
    best = np.where((aligned > unaligned)[:, None, None], warps, same)
    small = np.abs(best - same).max(axis=(1, 2), initial=0) <= MAX_SMALL_WARP
    return _Comparison(
        Pairs(pairs.first, pairs.second, pairs.turn, np.maximum(unaligned, aligned)),
        spread=_shared_spread(*details, best),
        difference=np.where(small, _difference(first, second, best), np.inf),
        unaligned=np.where(unaligned >= MIN_SCORES[-1], _difference(first, second, same), np.inf),
    )


def _shared_spread(first: Array, second: Array, warps: Array) -> Array:
    """Return how evenly the details that two pictures share are spread: about 0.6 in photos, below 0.4 in outlines."""
    values, inside = _sample(second, warps)
    shared = np.sqrt(np.maximum(first.reshape(values.shape) * values * inside, 0))
    area = np.maximum(inside.sum(axis=1), 1)
    mean_root, mean_square = np.sqrt(shared).sum(axis=1) / area, (shared**2).sum(axis=1) / area
    spread: Array = mean_root**2 / np.maximum(np.sqrt(mean_square), 1e-6)
    return spread


def _difference(first: Array, second: Array, warps: Array) -> Array:
    """Return the root mean square difference in brightness, of 255, where pictures overlap."""
    values, inside = _sample(second, warps)
    squares = ((first.reshape(values.shape) - values) ** 2 * inside).sum(axis=1)
    difference: Array = np.sqrt(squares / np.maximum(inside.sum(axis=1), 1))
    return difference


def _is_plausible(warps: Array) -> NDArray[np.bool_]:
    """Return whether warps are crops, borders or small rotations, and do not distort the picture."""
    width, height = warps[:, 0, 0], warps[:, 1, 1]
    shear = np.abs(warps[:, 0, 1] + warps[:, 1, 0])  # 0 for a rotation of a square
    scaled = (np.minimum(width, height) > 1 / MAX_SCALE) & (np.maximum(width, height) < MAX_SCALE)
    stretched = np.maximum(width, height) >= MAX_STRETCH * np.minimum(width, height)
    plausible: NDArray[np.bool_] = scaled & ~stretched & (shear < MAX_SHEAR)
    return plausible


def _score(first: Array, second: Array, warps: Array) -> Array:
    """Return the correlation of aligned details: of the whole pictures or, if higher, the median of that of blocks.

    The median ignores marks, and things that have moved.
    """
    values, inside = _sample(second, warps)
    fixed = first.reshape(len(first), SIDE * SIDE)
    whole = np.where(inside.mean(axis=1) > 0.6, _correlate(fixed, values, inside), -1)
    blocks = [_split_blocks(array) for array in (fixed, values, inside.astype(np.float32))]
    energy = np.sqrt((blocks[0] ** 2).mean(axis=2))
    used = (blocks[2].mean(axis=2) > 0.6) & (energy > 0.15 * np.median(energy, axis=1, keepdims=True))
    used &= energy > MIN_DETAIL / 2
    each = _correlate(*(block.reshape(-1, block.shape[2]) for block in blocks)).reshape(used.shape)
    enough = used.sum(axis=1) >= 0.6 * BLOCKS * BLOCKS
    median = np.full(len(first), -1, dtype=np.float32)
    if enough.any():
        median[enough] = np.nanmedian(np.where(used, each, np.nan)[enough], axis=1)
    return np.maximum(whole, median)


def _split_blocks(values: Array) -> Array:
    side = SIDE // BLOCKS
    return values.reshape(-1, BLOCKS, side, BLOCKS, side).swapaxes(2, 3).reshape(len(values), BLOCKS**2, side**2)


def _describe(thumbnails: Thumbnails) -> Array:
    """Return the lowest frequencies of a cosine transform, [N, F, F], normalized; higher ones count more."""
    number = np.arange(FREQUENCIES)
    waves = np.cos(np.pi * number[:, None] * (2 * np.arange(SIDE) + 1) / (2 * SIDE))
    waves = (waves / np.linalg.norm(waves, axis=1, keepdims=True)).astype(np.float32)
    result = np.empty((len(thumbnails), FREQUENCIES, FREQUENCIES), dtype=np.float32)
    for start in range(0, len(result), CHUNK):
        result[start : start + CHUNK] = waves @ thumbnails[start : start + CHUNK].astype(np.float32) @ waves.T
    result *= np.sqrt(np.hypot(number[:, None], number)).astype(np.float32)  # 0 for the mean brightness
    result /= np.maximum(np.linalg.norm(result, axis=(1, 2), keepdims=True), 1e-9)
    return result


def _turn(images: Array, turn: int) -> Array:
    transpose, upside_down, mirror = TURNS[turn]
    turned = images.swapaxes(1, 2) if transpose else images
    return turned[:, :: -1 if upside_down else 1, :: -1 if mirror else 1]


def _turn_frequencies(frequencies: Array, turn: int) -> Array:
    """Return the descriptors of turned images."""
    transpose, upside_down, mirror = TURNS[turn]
    signs = np.where(np.arange(FREQUENCIES) % 2, -1, 1).astype(np.float32)
    turned = frequencies.swapaxes(1, 2) if transpose else frequencies
    turned = turned * signs[:, None] if upside_down else turned
    return turned * signs if mirror else turned


def _details(images: Array) -> Array:
    fine = _blur(images, 0.6)
    return fine - _blur(fine, 2.0)


def _blur(images: Array, sigma: float) -> Array:
    radius = int(np.ceil(2.5 * sigma))
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2).astype(np.float32)
    weights /= weights.sum()
    side = images.shape[1]
    matrix = np.zeros((side, side), dtype=np.float32)
    for offset, weight in zip(range(-radius, radius + 1), weights, strict=True):
        np.add.at(matrix, (np.arange(side), np.clip(np.arange(side) + offset, 0, side - 1)), weight)
    blurred: Array = (matrix @ images @ matrix.T).astype(np.float32, copy=False)
    return blurred


def _shrink(images: Array) -> Array:
    count, side = images.shape[:2]
    half: Array = images.reshape(count, side // 2, 2, side // 2, 2).mean(axis=(2, 4), dtype=np.float32)
    return half


def _grid(side: int) -> tuple[Array, Array]:
    """Return the coordinates x and y of all pixels, each [side * side], from -1 to 1."""
    axis = ((np.arange(side) + 0.5) * 2 / side - 1).astype(np.float32)
    return np.tile(axis, side), np.repeat(axis, side)


def _sample(images: Array, warps: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Return images at the warped coordinates of all pixels, [M, P], and which of these are inside."""
    count, side = images.shape[:2]
    x, y = _grid(side)
    u, v = (
        (warps[:, axis, :1] * x + warps[:, axis, 1:2] * y + warps[:, axis, 2:] + 1) * (side / 2) - 0.5
        for axis in (0, 1)
    )
    inside = (u > -0.5) & (u < side - 0.5) & (v > -0.5) & (v < side - 0.5)
    np.clip(u, 0, side - 1.001, out=u)
    np.clip(v, 0, side - 1.001, out=v)
    left, top = u.astype(np.int32), v.astype(np.int32)
    u -= left
    v -= top
    index = top * side + left + (np.arange(count, dtype=np.int32) * side * side)[:, None]
    flat = images.ravel()
    upper = flat[index]
    upper += (flat[index + 1] - upper) * u
    index += side
    lower = flat[index]
    lower += (flat[index + 1] - lower) * u
    return upper + (lower - upper) * v, inside


def _normalize(values: Array, weight: Array) -> Array:
    total = np.maximum(weight.sum(axis=1, keepdims=True), 1)
    centred = (values - np.einsum("mp,mp->m", values, weight)[:, None] / total) * weight
    norm = np.sqrt(np.einsum("mp,mp->m", centred, centred))[:, None]
    normalized: Array = centred / np.maximum(norm, 1e-6)
    return normalized


def _correlate(first: Array, second: Array, inside: NDArray[np.generic]) -> Array:
    weight = inside.astype(np.float32)
    correlation: Array = np.einsum("mp,mp->m", _normalize(first, weight), _normalize(second, weight))
    return correlation


def _align(templates: Array, images: Array, warps: Array, steps: int) -> tuple[Array, Array]:
    """Align images with templates by affine warps.

    Inverse compositional Gauss-Newton steps (Baker and Matthews 2004) on normalized brightness.

    Args:
        templates: [M, S, S].
        images: [M, S, S].
        warps: [M, 2, 3], from coordinates of the templates to those of the images, to start with.
        steps: number of steps.

    Returns:
        The best warps, and their correlation [M].
    """
    count, side = templates.shape[:2]
    if not count:
        return warps, np.empty(0, dtype=np.float32)
    x, y = _grid(side)
    template = templates.reshape(count, -1)
    gradient_y, gradient_x = (each.reshape(count, -1) * (side / 2) for each in np.gradient(templates, axis=(1, 2)))
    norm = np.linalg.norm(template - template.mean(axis=1, keepdims=True), axis=1)
    steepest = np.stack([gradient * axis for gradient in (gradient_x, gradient_y) for axis in (x, y, 1)], axis=1)
    steepest /= np.maximum(norm, 1e-6)[:, None, None]
    # Without what a change of brightness or contrast explains.
    unit = np.stack([np.full_like(template, 1 / side), _normalize(template, np.ones_like(template))], axis=1)
    steepest -= (steepest @ unit.swapaxes(1, 2)) @ unit
    hessian = steepest @ steepest.swapaxes(1, 2)
    damping = 1e-3 * np.trace(hessian, axis1=1, axis2=2) / 6 + 1e-6
    inverse = np.linalg.inv(hessian + damping[:, None, None] * np.eye(6, dtype=np.float32))
    best, highest = warps, np.full(count, -1, dtype=np.float32)
    for step in range(steps + 1):
        values, inside = _sample(images, warps)
        weight = inside.astype(np.float32)
        image, fixed = _normalize(values, weight), _normalize(template, weight)
        score = np.einsum("mp,mp->m", image, fixed)
        better = (score > highest) & (weight.mean(axis=1) > 0.6)
        best, highest = np.where(better[:, None, None], warps, best), np.where(better, score, highest)
        if step < steps:
            change = inverse @ (steepest @ (image - fixed)[:, :, None])
            warps = _compose_inverse(warps, np.clip(change.reshape(count, 2, 3), -0.2, 0.2))
    return best, highest


def _compose_inverse(warps: Array, change: Array) -> Array:
    last_row = np.tile(np.array([[[0, 0, 1]]], dtype=np.float32), (len(warps), 1, 1))
    step = np.concatenate([change, last_row], axis=1) + np.diag([1, 1, 0]).astype(np.float32)
    composed = np.concatenate([warps, last_row], axis=1) @ np.linalg.inv(step)
    inverted: Array = np.clip(composed[:, :2], -2, 2).astype(np.float32)
    return inverted
