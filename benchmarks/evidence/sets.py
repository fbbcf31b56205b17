"""The data sets: classic MIL sets, bags of digits, digits as images, a synthetic cohort.

Each function fills a folder once and returns it; what is already whole is left alone.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from scipy.io import loadmat
from sklearn.datasets import load_digits

from benchmarks.evidence.stores import Made, put_bags, write_cohort, write_splits
from pipelines.workers import processes
from wsi.cohorts.synthetic import plan_cohort, slide_path, write_slide_of, write_table
from wsi.errors import ConfigError
from wsi.slides.synthetic import CLASSES, SITES, Site

CLASSIC = ("musk1", "musk2", "elephant", "fox", "tiger")

NEW_SITES = (
    Site("d", 0.2265, "philips", (0.55, 0.78, 0.30), (0.10, 0.80, 0.18), (0.8, 0.75)),
    Site("e", 0.25, "aperio", (0.74, 0.60, 0.30), (0.04, 0.95, 0.05), (1.25, 0.40)),
    Site("f", 0.243, "generic", (0.62, 0.66, 0.42), (0.20, 0.84, 0.28), (1.05, 0.70)),
)
"""Stains that nothing was developed on."""

_POOLS, _FOLDS = 15, 5  # pools of digit images; a fold tests on three of them and validates on two
_NOISE_SD = 1.5  # grey levels of 16 added to digits in bags, which are too easy without
_FEW_MANY = ((0, 0), (1, 1), (2, 4), (5, 8))  # nines in a bag: none, one, few, many
_NODES = (11, 2, 3, 4)  # bags of each per pool: the shares of CAMELYON-17's nodes, about


def classic(name: str, source: Path, root: Path) -> Made:
    """Return a classic MIL set, 10-fold.

    Args:
        source: folder with `<name>_scaled/`, MATLAB files of instances and their bags.

    Raises:
        ConfigError: the files are not there.
    """
    made = Made(root, ("negative", "positive"), ("split.kind=kfold", "split.folds=10"))
    if made.is_whole:
        return made
    folder = source / f"{name}_scaled"
    tables = {}
    for word in ("X", "Bag2", "bagI"):
        found = [p for p in folder.glob("*.mat") if p.name.lower().startswith(word.lower())]
        if len(found) != 1:
            raise ConfigError(f"{folder} has no {word}*.mat — give the folder of the MIL sets")
        tables[word] = loadmat(found[0])[word]
    bag, label = tables["Bag2"].ravel(), tables["bagI"].ravel()
    numbers = np.unique(bag)
    ids = [f"{name}-{number:03d}" for number in numbers]
    put_bags(root, name, ((i, tables["X"][bag == n]) for i, n in zip(ids, numbers)))
    write_cohort(root, ids, label=[made.classes[int(value)] for value in label])
    return made.close()


def digit_bags(
    n_classes: int,
    seed: int,
    root: Path,
    per_pool: int = 16,
    *,
    times: int = 1,
    noise_sd: float = _NOISE_SD,
) -> Made:
    """Return bags of noisy digits: is there a nine (2 classes), or how many (4, imbalanced).

    No image is in two parts of a fold: bags are drawn within pools of images.

    Args:
        per_pool: bags of each of the 15 pools, with 2 classes.
        times: how often the bags of a pool are drawn, with 4 classes.
        noise_sd: grey levels of 16 added to every pixel.
    """
    four = n_classes == 4
    made = Made(root, ("none", "one", "few", "many") if four else ("no-nine", "nine"))
    if made.is_whole:
        return made
    rng = np.random.default_rng([seed, n_classes])
    images, digit = load_digits(return_X_y=True)
    pool = rng.permutation(len(images)) % _POOLS
    ids, labels, pools, bags = [], [], [], []
    for k in range(_POOLS):
        nines = np.flatnonzero((pool == k) & (digit == 9))
        others = np.flatnonzero((pool == k) & (digit != 9))
        plan = np.repeat(range(4), times * np.array(_NODES)) if four else np.arange(per_pool) % 2
        for c in plan:
            low, high = _FEW_MANY[c] if four else (c, c)
            n = int(rng.integers(20, 31) if four else rng.integers(10, 21))
            hits = int(rng.integers(low, high + 1))
            rows = np.concatenate([rng.choice(nines, hits), rng.choice(others, n - hits)])
            noise = rng.normal(0, noise_sd, (n, images.shape[1]))
            ids.append(f"bag-{len(ids):03d}")
            labels.append(made.classes[c])
            pools.append(k)
            bags.append(rng.permutation(images[rows] + noise, axis=0))
    put_bags(root, "digits", zip(ids, bags, strict=True))
    write_cohort(root, ids, label=labels)
    write_splits(root, _pool_folds(ids, np.asarray(pools)))
    return made.close()


def _pool_folds(ids: list[str], pools: np.ndarray) -> list[dict[str, list[str]]]:
    folds = []
    for fold in range(_FOLDS):
        step = (pools - 3 * fold) % _POOLS
        parts = {"test": step < 3, "val": (step >= 3) & (step < 5), "train": step >= 5}
        folds.append({name: [ids[i] for i in np.flatnonzero(m)] for name, m in parts.items()})
    return folds


def digit_images(noise: float, seed: int, root: Path, n: int = 600) -> Made:
    """Return single digits, each a bag of one tile; a share of the labels trained on is wrong.

    The column `label` is what training sees, `truth` what the test part is scored against.
    """
    classes = tuple(f"digit-{k}" for k in range(10))
    made = Made(root, classes, ("study.truth=truth",) if noise else ())
    if made.is_whole:
        return made
    rng = np.random.default_rng([seed, round(100 * noise)])
    images, digit = load_digits(return_X_y=True)
    rows = np.sort(rng.permutation(len(images))[:n])
    truth = digit[rows]
    flipped = rng.random(n) < noise
    seen = np.where(flipped, (truth + rng.integers(1, 10, n)) % 10, truth)
    ids = [f"image-{row:04d}" for row in rows]
    put_bags(root, "digit-images", ((i, images[row][None]) for i, row in zip(ids, rows)))
    named = {"label": [classes[v] for v in seen], "truth": [classes[v] for v in truth]}
    write_cohort(root, ids, **named)
    return made.close()


def cohort(sites: tuple[Site, ...], per_class_and_site: int, seed: int, root: Path) -> Made:
    """Return synthetic slides of three classes over three stains, as bags of texture-v1."""
    from pipelines import preprocess
    from pipelines.config import load_config
    from pipelines.console import Console

    made = Made(root, CLASSES)
    if made.is_whole:
        return made
    folder = root / "slides"
    folder.mkdir(parents=True, exist_ok=True)
    planned = plan_cohort(per_class_and_site, seed, sites)
    # The outline is written after its slide, so it tells that both are whole.
    todo = [p for p in planned if not (folder / f"{p.slide_id}.geojson").is_file()]
    with processes(2) as pool:
        list(pool.map(partial(write_slide_of, folder=folder), todo))
    config = load_config(["tiling.mpp=0.5", "tiling.tile_px=128"])
    code = preprocess.run(config, preprocess.Options((folder,), root, jobs=2), Console(quiet=True))
    if code:
        raise ConfigError(f"{root}: preprocessing ended with {code} — see `wsi why`")
    write_table(planned, [slide_path(item, folder) for item in planned], root / "cohort.csv")
    return made.close()


__all__ = ["CLASSIC", "NEW_SITES", "SITES", "classic", "cohort", "digit_bags", "digit_images"]
