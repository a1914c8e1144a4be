"""The pictures the embedded model learns from: names, splits, captions, class words, and their pixels.

The folder holds Flickr8k (five captions a picture), one picture for each ImageNet class and eighteen for each
Caltech-101 category, all squashed to 224x224 and zipped. Pictures whose split is not "train" are never trained on.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.towers.frame_tower import labels

ARCHIVES = {
    "flickr": "flickr8k-224.zip",
    "imagenet": "imagenet-one-per-class-224.zip",
    "caltech": "caltech101-18-per-class-224.zip",
}
CAPTIONS = "flickr8k-captions.csv"

# Class names that are unreadable, ambiguous or misspelt in the original list.
CALTECH_FIX = {
    "Faces": "face",
    "Faces_easy": "face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "airplanes": "airplane",
    "bass": "bass fish",
    "binocular": "binoculars",
    "buddha": "Buddha statue",
    "car_side": "car",
    "cougar_body": "cougar",
    "cougar_face": "cougar",
    "crocodile_head": "crocodile",
    "flamingo_head": "flamingo",
    "garfield": "Garfield cartoon cat",
    "gerenuk": "gerenuk antelope",
    "hawksbill": "hawksbill turtle",
    "headphone": "headphones",
    "ketch": "sailing boat",
    "nautilus": "nautilus shell",
    "rhino": "rhinoceros",
    "sea_horse": "seahorse",
    "snoopy": "Snoopy cartoon dog",
    "water_lilly": "water lily",
    "watch": "wristwatch",
    "yin_yang": "yin-yang symbol",
    "cellphone": "cell phone",
    "joshua_tree": "Joshua tree",
    "windsor_chair": "Windsor chair",
}


@dataclass(frozen=True)
class Picture:
    """One still. captions: tidied human sentences (none for class pictures). label: class words or None."""

    name: str
    source: str  # flickr, imagenet or caltech
    split: str  # train, dev or test
    captions: tuple[str, ...] = ()
    label: str | None = None


def tidy_sentence(text: str) -> str:
    """One well-formed sentence of a raw caption: single spaces, no stray marks, a capital first, one full stop last."""
    text = re.sub(r"[\"#;*()]|``|''|\s-\s|--+", " ", text)
    text = re.sub(r"\s+([,.!?:'])", r"\1", re.sub(r"\s+n't\b", "n't", text))
    text = re.sub(r"\s+", " ", text).strip(" .,!?:-'")
    letters = [c for c in text if c.isalpha()]
    if sum(c.isupper() for c in letters) > len(letters) / 2:  # a handful were typed in capitals
        text = text.lower()
    return text[:1].upper() + text[1:] + "." if text else ""


def _captions(path: Path) -> dict[str, tuple[str, list[str]]]:
    """name -> (split, tidied captions of at least three words) from the captions file."""
    found: dict[str, tuple[str, list[str]]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            _split, captions = found.setdefault(row["image"], (row["split"], []))
            sentence = tidy_sentence(row["caption"])
            if len(sentence.split()) >= 3:
                captions.append(sentence)
    return found


def _class_picture(source: str, name: str) -> Picture:
    number, split, words = Path(name).stem.split("_", 2)
    fixed = labels()["imagenet"][int(number)] if source == "imagenet" else CALTECH_FIX.get(words)
    return Picture(name, source, split, (), fixed or words.replace("_", " "))


def pictures(data_dir: str | Path) -> list[Picture]:
    """All pictures in a fixed order: Flickr8k, then ImageNet by class index, then Caltech-101, each by name.

    Raises FileNotFoundError where one of the archives or the captions file is missing.
    """
    data_dir = Path(data_dir)
    captions = _captions(data_dir / CAPTIONS)
    found = [Picture(n, "flickr", split, tuple(lines)) for n, (split, lines) in sorted(captions.items()) if lines]
    for source in ("imagenet", "caltech"):
        with zipfile.ZipFile(data_dir / ARCHIVES[source]) as archive:
            found += [_class_picture(source, name) for name in sorted(archive.namelist())]
    return found


def imagenet_words(found: list[Picture]) -> list[str]:
    """The readable class words by ImageNet index (0..999), as used in training answers and notes."""
    return [p.label for p in found if p.source == "imagenet" and p.label]


def _decode(encoded: bytes, name: str) -> np.ndarray:
    try:
        rgb = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    except OSError as error:
        raise ValueError(f"{name} cannot be decoded") from error
    if rgb.shape != (224, 224, 3):
        raise ValueError(f"{name} is not a 224x224 picture")
    return rgb


def read_all(data_dir: str | Path, found: list[Picture], workers: int = 16) -> list[np.ndarray]:
    """Pixels of `found`, in its order: uint8 (224, 224, 3) RGB each. Threads suffice: Pillow decodes outside the GIL.

    Raises ValueError naming a picture that cannot be decoded.
    """
    archives = {source: zipfile.ZipFile(Path(data_dir) / file) for source, file in ARCHIVES.items()}
    try:
        with ThreadPoolExecutor(workers) as pool:  # ZipFile reads are locked inside, decoding is not
            return list(pool.map(lambda p: _decode(archives[p.source].read(p.name), p.name), found))
    finally:
        for archive in archives.values():
            archive.close()
