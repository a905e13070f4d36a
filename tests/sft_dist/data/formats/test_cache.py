"""What is fetched stays inside its own folder of the cache, and within bounds."""

from __future__ import annotations

import zipfile
from pathlib import Path

import fsspec
import pytest

from sft_dist.data.formats import cache
from sft_dist.data.formats.cache import fetched
from sft_dist.data.sources import load_rows
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.references import classify, resolve
from sft_dist.recipe.remote import state_of_url
from sft_dist.recipe.schema import Data
from tests.sft_dist.data.web import Web


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("SFT_DIST_CACHE", str(tmp_path / "outer" / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return tmp_path / "outer" / "cache"


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def refused(url: str) -> str:
    with pytest.raises(UserError) as caught:
        fetched(url)
    return str(caught.value)


class Listing(fsspec.AbstractFileSystem):
    """A server whose listing says what it likes."""

    protocol = "s3"
    cachable = False
    names = ("bucket/a/fine.csv",)
    content = b"text\nhello\n"

    def find(self, path, **options):
        return list(self.names)

    def info(self, path, **options):
        return {"name": path, "size": 1, "type": "file"}  # not its size

    def _open(self, path, mode="rb", **options):
        import io

        return io.BytesIO(self.content)


@pytest.fixture
def listing(monkeypatch: pytest.MonkeyPatch) -> type[Listing]:
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url, **options: (Listing(), "bucket/a"))
    return type("Listing", (Listing,), {})


@pytest.mark.parametrize(
    "name",
    ["bucket/a/../../../evil", "bucket/a/x/../../../../../evil", "bucket/evil", "/evil", "../evil", "bucket/a/.."],
)  # fmt: skip
def test_a_name_that_leads_out_of_the_folder_is_refused(home, listing, monkeypatch, tmp_path, name):
    monkeypatch.setattr(Listing, "names", ("bucket/a/fine.csv", name))
    said = refused("s3://bucket/a/")
    assert "data.source: one of its names leads out of the folder" in said
    assert "found: s3://bucket/a/" in said
    assert files_in(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("page", ["../evil.csv", "..%2Fevil.csv", "x/../../evil.csv", "..?evil.csv", "/evil.csv"])
def test_a_web_page_with_names_that_lead_out_writes_nothing_outside(home, web: Web, tmp_path, page):
    pytest.importorskip("aiohttp")
    (web.folder / "evil.csv").write_text("text\nevil\n")
    web.pages = {"/d/": f'<a href="a.csv">a</a><a href="{page}">b</a>'.encode(), "/d/a.csv": b"text\nfine\n"}
    before = files_in(tmp_path)
    try:
        folder = fetched(f"{web.address}/d/")
        assert isinstance(folder, Path)
        assert folder.is_relative_to(home / "urls")
    except (UserError, OSError):
        folder = home / "urls" / "none"
    inside = {str((folder / name).relative_to(tmp_path)) for name in files_in(folder)} if folder.is_dir() else set()
    assert set(files_in(tmp_path)) - set(before) == inside
    assert all("authorization" not in request.headers for request in web.requests)


def test_too_many_bytes_stop_the_copy_whatever_the_server_said(home, listing, monkeypatch, tmp_path):
    monkeypatch.setattr(Listing, "content", b"x" * 600)
    monkeypatch.setattr(cache, "MAX_BYTES", 1_000)
    assert isinstance(fetched("s3://bucket/a/"), Path)
    there = files_in(tmp_path)
    monkeypatch.setattr(Listing, "names", ("bucket/a/1.csv", "bucket/a/2.csv"))
    said = refused("s3://bucket/a/")
    assert "it holds more than the 1,000 bytes that are fetched" in said
    assert "download it and name the file or folder" in said
    assert files_in(tmp_path) == there
    assert not list((home / "urls").glob(".fetching-*"))


def test_too_many_files_are_refused(home, listing, monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "MAX_FILES", 2)
    monkeypatch.setattr(Listing, "names", tuple(f"bucket/a/{number}.csv" for number in range(3)))
    assert "3 files are more than the 2 that are fetched" in refused("s3://bucket/a/")
    assert files_in(tmp_path) == []


def test_what_fails_on_the_way_leaves_nothing_behind(home, listing, monkeypatch, tmp_path):
    def broken(self, path, mode="rb", **options):
        raise OSError("the line is dead")

    monkeypatch.setattr(Listing, "_open", broken)
    with pytest.raises(OSError, match="the line is dead"):
        fetched("s3://bucket/a/")
    assert files_in(tmp_path) == []


def test_files_below_folders_are_fetched_as_they_are(home, listing, monkeypatch):
    monkeypatch.setattr(Listing, "names", ("bucket/a/x/1.csv", "bucket/a/..name.csv"))
    folder = fetched("s3://bucket/a/")
    assert isinstance(folder, Path)
    assert files_in(folder) == ["..name.csv", "x/1.csv"]
    assert (folder / "x" / "1.csv").read_bytes() == Listing.content


# ── protocols ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize(
    "url",
    [
        "zip://*.csv::WEB/a.zip",
        "zip://::WEB/a.zip/",
        "zip://*.csv::file://HERE/web/a.zip",
        "zip://HERE/web/a.zip/",
        "reference://WEB/spec.json",
        "reference://a.csv::WEB/spec.json",
        "python://HERE/evil.py",
        "github://org:repo@main/a.csv",
        "ssh://127.0.0.1/a.csv",
        "http://x::WEB/a.csv",
    ],
)
def test_other_protocols_and_chains_are_refused_everywhere(web: Web, tmp_path, url):
    url = url.replace("WEB", web.address).replace("HERE", str(tmp_path))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with zipfile.ZipFile(web.folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../evil.csv", "text\nevil\n")
        archive.writestr("bomb.csv", "x" * 10_000_000)
    before = files_in(tmp_path)
    said = refused(url)
    assert "protocol" in said or "chained" in said
    assert f"found: {url.replace('org:repo@', 'org:***@')}" in said  # it could be a password
    with pytest.raises(UserError, match=r"data\.source"):
        resolve(classify(url, tmp_path))
    for format in ("auto", "csv"):
        with pytest.raises(UserError, match=r"data\.source"):
            load_rows(Data(source=url, format=format))
    assert state_of_url(url) == ""
    assert web.requests == []
    assert files_in(tmp_path) == before
