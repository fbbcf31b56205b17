"""Trains a timm model on labelled images with any objective of the toolkit: one loop for all.

    python docs/examples/image_classifier.py
    python docs/examples/image_classifier.py --patches PATCHES.zip --objective ce ncmi

Without patches the images are scikit-learn's digits; nothing is downloaded, weights are random.
Patches are a folder or zip of images in one of two layouts:

    tumour/a.png  normal/b.png                     a folder per class
    train/bags/SLIDE/a.png  train/labels.csv       a folder per slide; the table gives its label,
                                                   which all its images take over

What lies below `test` or `valid` is the test part; without such a folder a quarter of the images is
drawn, and images of one slide on both sides flatter the figures. It says how the objectives are
used, not which is better: that takes rates tuned per objective and many seeds.
"""

from __future__ import annotations

import argparse
import csv
import io
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import timm
import torch
from PIL import Image, UnidentifiedImageError
from sklearn.datasets import load_digits
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from wsi.aggregators.base import Output
from wsi.errors import CohortError, WsiError
from wsi.objectives import OBJECTIVES
from wsi.objectives.base import Objective

IMAGES = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}
TEST = {"test", "valid", "val", "validation"}
LEAST_DIGITS = 100
BATCH = 32
Part = tuple[Tensor, Tensor]
"""Images (n, channels, px, px) and classes (n,)."""


@dataclass(frozen=True)
class Images:
    """Parts to train on and to test; `val` fits what a decision rule leaves open, or is None."""

    classes: tuple[str, ...]
    train: Part
    val: Part | None
    test: Part


# -- the plain loop, the same for every objective -----------------------------------------------


def fit(
    network: nn.Module, objective: Objective, images: Images, epochs: int, lr: float, seed: int
) -> None:
    """Train the network and all that its objective owns, then settle the decision rule."""
    x, y = images.train
    optimizer = torch.optim.AdamW([*network.parameters(), *objective.parameters()], lr=lr)
    steps = epochs * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    order = torch.Generator().manual_seed(seed)
    objective.before_fit(outputs(network, objective, images.train))
    for _ in range(epochs):
        network.train()
        for rows in torch.randperm(len(x), generator=order).split(BATCH):
            output = embedded(network, objective, x[rows])
            loss = objective(output, y[rows])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_([*network.parameters(), *objective.parameters()], 1.0)
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                objective.after_step(output, y[rows])
    val = None if images.val is None else outputs(network, objective, images.val)
    objective.after_fit(outputs(network, objective, images.train), val)


def embedded(network: nn.Module, objective: Objective, x: Tensor) -> Output:
    """Return the embedding (n, E), and the logits (n, C) where the objective wants them."""
    embedding = network.forward_head(network.forward_features(x), pre_logits=True)
    logits = network.get_classifier()(embedding) if objective.wants == "logits" else None
    return Output(embedding, logits)


@torch.no_grad()
def outputs(
    network: nn.Module, objective: Objective, part: Part
) -> Iterator[tuple[Output, Tensor]]:
    """Yield outputs and classes of a part in evaluation mode, without gradient."""
    network.eval()
    for x, y in zip(part[0].split(256), part[1].split(256)):
        yield embedded(network, objective, x), y


@torch.no_grad()
def predict(network: nn.Module, objective: Objective, part: Part) -> np.ndarray:
    """Return probabilities (n, C) by the objective's own decision rule."""
    p = [objective.probabilities(output) for output, _ in outputs(network, objective, part)]
    return torch.cat(p).numpy()


def train_one(name: str, images: Images, args: argparse.Namespace) -> tuple[float, float]:
    """Return test accuracy and macro-F1 of one objective."""
    torch.manual_seed(args.seed)
    x, y = images.train
    C = len(images.classes)
    network = timm.create_model(args.model, pretrained=False, in_chans=x.shape[1], num_classes=C)
    with torch.no_grad():
        width = network.forward_head(network.eval().forward_features(x[:1]), pre_logits=True)
    counts = torch.bincount(y, minlength=C).tolist()
    objective = OBJECTIVES.load(name)(C, width.shape[1], counts)
    fit(network, objective, images, args.epochs, args.lr, args.seed)
    decided, truth = predict(network, objective, images.test).argmax(1), images.test[1].numpy()
    macro_f1 = f1_score(truth, decided, average="macro", labels=range(C), zero_division=0)
    return float((decided == truth).mean()), float(macro_f1)


# -- images ----------------------------------------------------------------------------------------


def digits(seed: int, px: int, n: int | None) -> Images:
    """Return scikit-learn's digits, `n` of them: 55 % to train, 15 % validation, 30 % test."""
    x, y = load_digits(return_X_y=True)
    pictures = torch.from_numpy(x.reshape(-1, 1, 8, 8) / 16).float()
    pictures = nn.functional.interpolate(pictures - 0.5, (px, px), mode="bilinear")
    labels = torch.from_numpy(y)
    kept = np.random.default_rng(seed).permutation(len(y))[:n]
    rest, test = train_test_split(kept, test_size=0.3, stratify=y[kept], random_state=seed)
    train, val = train_test_split(rest, test_size=0.2, stratify=y[rest], random_state=seed)
    parts = ((pictures[rows], labels[rows]) for rows in map(torch.from_numpy, (train, val, test)))
    return Images(tuple("0123456789"), *parts)


def patches(path: Path, seed: int, px: int) -> Images:
    """Return the images of a folder or zip, in one of the layouts above.

    Raises:
        CohortError: it is neither, an image is damaged, or a part lacks a class.
    """
    files = read_files(path)
    labels = slide_labels(files)
    names = sorted(name for name in files if PurePosixPath(name).suffix.lower() in IMAGES)
    label_of = {name: label(PurePosixPath(name), labels) for name in names}
    classes = tuple(sorted(set(label_of.values())))
    if len(classes) < 2:
        raise CohortError(
            f"{path}: {len(classes)} classes in {len(names)} images — give a folder per class"
        )
    y = np.array([classes.index(label_of[name]) for name in names])
    is_test = np.array([bool(TEST & set(PurePosixPath(name).parts)) for name in names])
    if is_test.all() or not is_test.any():
        rows = np.arange(len(names))
        is_test = np.isin(rows, train_test_split(rows, stratify=y, random_state=seed)[1])
    for part, chosen in (("train", ~is_test), ("test", is_test)):
        missing = [c for k, c in enumerate(classes) if k not in y[chosen]]
        if missing:
            raise CohortError(f"{path}: no {part} image of class {missing[0]} — add some")
    x = torch.from_numpy(np.stack([picture(path, n, files[n], px) for n in names]))
    train, test = ((x[chosen], torch.from_numpy(y[chosen])) for chosen in (~is_test, is_test))
    return Images(classes, train, None, test)


def read_files(path: Path) -> dict[str, bytes]:
    """Return the contents of all visible files by their path inside a folder or zip."""
    if path.is_dir():
        found = {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file()}
        return {name: file.read_bytes() for name, file in found.items() if visible(name)}
    if not zipfile.is_zipfile(path):
        raise CohortError(f"{path}: neither a folder nor a zip — check --patches")
    with zipfile.ZipFile(path) as archive:
        listed = [i for i in archive.infolist() if not i.is_dir() and visible(i.filename)]
        return {info.filename: archive.read(info) for info in listed}


def visible(name: str) -> bool:
    return not any(part.startswith((".", "__")) for part in PurePosixPath(name).parts)


def slide_labels(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the label of each slide's folder, from every labels.csv: name, label."""
    found = {}
    for name, data in files.items():
        if PurePosixPath(name).name == "labels.csv":
            rows = list(csv.reader(io.StringIO(data.decode("utf-8-sig"))))
            found |= {row[0]: row[1] for row in rows[1:] if len(row) > 1}
    return found


def label(name: PurePosixPath, slides: Mapping[str, str]) -> str:
    """Return the label of an image: its folder's in the tables, or its folder's name."""
    folder = name.parent.name
    if slides and folder not in slides:
        raise CohortError(f"{name}: labels.csv has no row {folder} — add one")
    return slides.get(folder, folder)


def picture(path: Path, name: str, data: bytes, px: int) -> np.ndarray:
    """Return an image as float32 (3, px, px), about -1 to 1."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = np.asarray(image.convert("RGB").resize((px, px), Image.Resampling.BILINEAR))
    except (UnidentifiedImageError, OSError) as error:
        raise CohortError(f"{path}: {name} is no readable image ({error}) — remove it") from None
    return pixels.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1


# -- the program -----------------------------------------------------------------------------------


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--patches", type=Path, help="folder or zip of images; digits without it")
    parser.add_argument("--objective", nargs="+", default=["ce", "ncmi"], metavar="NAME")
    parser.add_argument("--model", default="test_resnet", help="any timm model")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--px", type=int, help="side the images are brought to")
    parser.add_argument("--n", type=int, help="number of digits to use; all 1797 without it")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    if args.n is not None and args.n < LEAST_DIGITS:
        parser.error(f"--n {args.n}: give at least {LEAST_DIGITS}, so that parts have all classes")
    try:
        for name in args.objective:
            OBJECTIVES.check(name, {})
        if args.patches is None:
            images = digits(args.seed, args.px or 32, args.n)
        else:
            images = patches(args.patches, args.seed, args.px or 64)
        sizes = f"{len(images.train[1])} images to train, {len(images.test[1])} to test"
        print(f"{sizes}, classes {', '.join(images.classes)}")
        for name in args.objective:
            accuracy, macro_f1 = train_one(name, images, args)
            print(f"{name:<12} accuracy {accuracy:.3f}  macro-F1 {macro_f1:.3f}")
    except WsiError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
