"""What hostile inputs come to: one table of attacks, each with an oracle that watches code, files, the network and the environment.

`docs/security.md` shows the table; `GOLDEN=write` renews it there (read the difference before it is committed).
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import sqlite3
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import soundfile

from launch import check
from launch.evaluate import run_sweep
from launch.planning import plan_run_folder
from launch.render import describe_run_states
from launch.run_state import states_of
from launch.slurm.clusters import read_cluster
from sft_dist import predict
from sft_dist.checkpoints import store
from sft_dist.data import media
from sft_dist.data.cached_folder import cached_folder
from sft_dist.data.formats import sql
from sft_dist.data.formats.cache import fetched
from sft_dist.data.media import MediaError, load_audio, load_image
from sft_dist.data.sources import load_rows
from sft_dist.data.splits import check_splits, keep_splits
from sft_dist.recipe.arithmetic import steps_of
from sft_dist.recipe.errors import UserError
from sft_dist.recipe.files import write_json
from sft_dist.recipe.load import load
from sft_dist.recipe.masking import masked
from sft_dist.recipe.references import check_references, model_source, weight_problems
from sft_dist.recipe.schema import Data, Recipe
from sft_dist.recipe.text import printable
from sft_dist.run.causes import Facts, classify_facts
from sft_dist.run.folder import RunFolder
from sft_dist.run.manifest import source_digest, write_manifest
from sft_dist.run.subprocesses import environment, module_command
from sft_dist.tasks.audio import seconds_of
from sft_dist.tasks.loading import load_tokenizer
from tests.launch.conftest import make_recipe
from tests.sft_dist.data.formats.test_cache import Listing
from tests.sft_dist.data.test_media import picture, tone
from tests.sft_dist.data.web import serving
from tests.sft_dist.recipe.test_trust import add_code, recipe_of, write_export
from tests.sft_dist.run.test_causes import PEER, error, heartbeat

PAGE = Path(__file__).parents[2] / "docs" / "security.md"
BEGIN, END = "<!-- attacks: written by tests/integration/test_security.py -->\n", "<!-- end of attacks -->\n"
TIME_S = 20  # for one attack; an endless one would never end
MEMORY_BYTES = 1536 * 2**20  # that one attack may add to what the process has
RATE = 16_000
SECRET = "hf_secret"


# ── the oracle ──────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass
class Scene:
    """A folder `data` for what an attacker wrote, things outside it to be left alone, and a server that counts."""

    folder: Path
    port: int
    monkeypatch: pytest.MonkeyPatch
    connections: list[Any] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def marker(self) -> Path:
        return self.folder / "ran"

    @property
    def web(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def file(self, name: str, content: str | bytes = "") -> Path:
        path = self.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def outside(self) -> dict[str, bytes]:
        kept = (self.folder / "outside").rglob("*")
        return {str(path): path.read_bytes() for path in kept if path.is_file()}

    def public(self, text: str) -> str:
        """The message without what differs from one machine to another."""
        text = text.replace(str(self.folder), "").replace(str(self.port), "PORT").replace("\n", " ")
        return re.sub(r"\s+", " ", re.sub(r"\b[0-9a-f]{10,}\b", "ID", text)).strip()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    for name in ("data", "outside", "elsewhere"):
        (tmp_path / name).mkdir()
    picture(tmp_path / "outside" / "secret.png")
    (tmp_path / "outside" / "secret.csv").write_text("text,label\nsecret,a\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("SFT_DIST_CACHE", str(tmp_path / "cache"))
    with socket.create_server(("0.0.0.0", 0)) as server:
        scene = Scene(tmp_path, server.getsockname()[1], monkeypatch)

        def count() -> None:
            while True:
                try:
                    scene.connections.append(server.accept()[0].recv(2**16))
                except OSError:
                    return

        Thread(target=count, daemon=True).start()
        yield scene


@contextmanager
def bounded() -> Iterator[None]:
    """Ends what takes too long or too much memory."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"it took more than {TIME_S} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, late)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, before[1]))
    signal.setitimer(signal.ITIMER_REAL, TIME_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, before)


# ── attacks ─────────────────────────────────────────────────────────────────────────────────────────────────────────
@dataclass(frozen=True)
class Attack:
    input: str
    expected: str  # a part of the result
    run: Callable[[Scene], object]  # returns what is said of it, or raises that
    subject: str = ""


ATTACKS: list[Attack] = []
Run = Callable[[Scene], object]


def attack(subject: str, input: str, expected: str) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        ATTACKS.append(Attack(input, expected, run, subject))
        return run

    return add


def result_of(attack: Attack, scene: Scene) -> str:
    try:
        return str(attack.run(scene))
    except (UserError, MediaError) as refusal:
        return str(refusal)


def refusal_of(call: Callable[[], object]) -> Exception:
    with pytest.raises((UserError, MediaError)) as caught:
        call()
    return caught.value


def rows(path: Path | str, **settings: Any) -> Any:
    return load_rows(Data(source={"train": str(path)}, **settings))["train"]


def cell(scene: Scene, value: str, **settings: Any) -> object:
    table = scene.file("a.csv", f'image,label\n"{value}",a\n')
    return load_image({"path": rows(table, **settings)["image"][0], "bytes": None})


for name, value in {
    "`reference://` chained to a server": "reference://a.png::WEB/spec.json",
    "`zip://` chained to a server": "zip://a.png::WEB/a.zip",
    "`python://` with a program": "python://HERE/data/evil.py",
    "`file://` outside": "file://HERE/outside/secret.png",
    "`..` outside": "../outside/secret.png",
    "an absolute path": "HERE/outside/secret.png",
    "an address with a password": "http://me:pw@127.0.0.1:PORT/a.png",
}.items():

    @attack("a cell of a table", name, "cannot be read (")
    def _(scene: Scene, value: str = value) -> object:
        scene.file("evil.py", f"open({str(scene.marker)!r}, 'w')")
        made = value.replace("WEB", scene.web).replace("HERE", str(scene.folder)).replace("PORT", str(scene.port))
        return cell(scene, made)


@attack("a cell of a table", "a symbolic link that leads outside", "cannot be read (no such file in the folder")
def _(scene: Scene) -> object:
    (scene.data / "link.png").symlink_to(scene.folder / "outside" / "secret.png")
    return cell(scene, "link.png")


def inside(host: str) -> str:
    """Addresses with `::` are taken for chained URLs."""
    return "cannot be read (a cell names a file" if "::" in host else "an address inside a network"


for host in ("127.0.0.1", "localhost", "2130706433", "0177.0.0.1", "[::ffff:127.0.0.1]", "[::1]", "0.0.0.0"):

    @attack("`allow_urls: true`", f"`http://{host}:PORT/a.png`", inside(host))
    def _(scene: Scene, host: str = host) -> object:
        return cell(scene, f"http://{host}:{scene.port}/a.png", allow_urls=True)


for host in ("169.254.169.254", "10.0.0.1", "192.168.1.1", "[fd00::1]", "[64:ff9b::7f00:1]", "100.64.0.1"):

    @attack("`allow_urls: true`", f"`http://{host}/a.png`", inside(host))
    def _(scene: Scene, host: str = host) -> object:
        return cell(scene, f"http://{host}/a.png", allow_urls=True)


@attack(
    "`allow_urls: true`", "a public server that redirects to `http://127.0.0.2:PORT/`", "an address inside a network"
)
def _(scene: Scene) -> object:
    scene.monkeypatch.setattr(media, "is_public", lambda address: address == "127.0.0.1")
    with serving(scene.folder / "web") as web:
        web.redirects = {"/a.png": f"http://127.0.0.2:{scene.port}/a.png"}
        return str(refusal_of(lambda: cell(scene, f"{web.address}/a.png", allow_urls=True))).replace(web.address, "")


# ── sources ──
@attack("an archive or listing", "a member `../../evil`", "leads out of the folder it is copied into")
def _(scene: Scene) -> object:
    import fsspec

    scene.monkeypatch.setattr(fsspec.core, "url_to_fs", lambda url, **options: (Listing(), "bucket/a"))
    scene.monkeypatch.setattr(Listing, "names", ("bucket/a/fine.csv", "bucket/a/../../../outside/evil"))
    return fetched("s3://bucket/a/")


for name, url in {"an archive behind a URL": "zip://*.csv::WEB/a.zip", "`python://`": "python://HERE/evil.py"}.items():

    @attack("`data.source`", name, "data.source.train: ")
    def _(scene: Scene, url: str = url) -> object:
        return rows(url.replace("WEB", scene.web).replace("HERE", str(scene.folder)))


IRREGULAR = ("a named pipe", "a socket", "a device")


def make_irregular(kind: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        socket.socket(socket.AF_UNIX).bind(os.path.relpath(path))
    else:
        os.symlink("/dev/zero", path)
    return path


for kind in IRREGULAR:

    @attack("a file that does not end", f"{kind} as source", kind)
    def _(scene: Scene, kind: str = kind) -> object:
        return rows(make_irregular(kind, scene.data / "a.csv"))

    @attack("a file that does not end", f"{kind} in a folder of tables", kind)
    def _(scene: Scene, kind: str = kind) -> object:
        make_irregular(kind, scene.data / "set" / "a.jsonl")
        return rows(scene.data / "set")

    @attack("a file that does not end", f"{kind} as recipe", "is not a regular file")
    def _(scene: Scene, kind: str = kind) -> object:
        return load(make_irregular(kind, scene.data / "a.yaml"))

    @attack("a file that does not end", f"{kind} as weights of a model", kind)
    def _(scene: Scene, kind: str = kind) -> object:
        make_irregular(kind, scene.data / "model" / "model.safetensors")
        return model_source(str(scene.data / "model"))

    @attack("a file that does not end", f"{kind} as image", "cannot be read (" + f"it is {kind}" * (kind != "a device"))
    def _(scene: Scene, kind: str = kind) -> object:
        make_irregular(kind, scene.data / "a.png")
        return cell(scene, "a.png")

    @attack("a file that does not end", f"{kind} as recording", kind)
    def _(scene: Scene, kind: str = kind) -> object:
        return seconds_of({"path": str(make_irregular(kind, scene.data / "a.wav")), "bytes": None})


@attack("a file that does not end", "`file:///dev/zero` as source", "a device")
def _(scene: Scene) -> object:
    return rows("file:///dev/zero", format="csv")


@attack("a table", "a csv of a million columns", "1,000,000 columns; at most 10,000")
def _(scene: Scene) -> object:
    return rows(scene.file("a.csv", ",".join(map(str, range(1_000_000))) + "\n"))


@attack("a table", "rows of JSON with 20,000 keys", "20,000 columns; at most 10,000")
def _(scene: Scene) -> object:
    return rows(scene.file("a.jsonl", json.dumps(dict.fromkeys(map(str, range(20_000)), 1)) + "\n"))


@attack("a table", "JSON nested 100,000 deep", "could not be read: ")
def _(scene: Scene) -> object:
    return rows(scene.file("a.jsonl", '{"text": ' + "[" * 100_000 + "\n"))


@attack("a table", "bytes that are no Parquet", "not a parquet file")
def _(scene: Scene) -> object:
    return rows(scene.file("a.parquet", b"\x00" * 1000))


def database(scene: Scene, query: str) -> object:
    with sqlite3.connect(scene.data / "a.db") as connection:
        connection.execute("create table t (a text)")
        connection.execute("insert into t values ('a')")
    before = (scene.data / "a.db").read_bytes()
    try:
        return rows(f"sqlite:///{scene.data}/a.db#{query}")
    finally:
        assert (scene.data / "a.db").read_bytes() == before


for query in (
    "DROP TABLE t",
    "CREATE TABLE u (a int)",
    "VACUUM INTO 'HERE/outside/copy.db'",
    "ATTACH 'HERE/outside/b.db' AS b",
    "INSERT INTO t VALUES (1) RETURNING *",
):

    @attack("a query", f"`{query.replace('HERE/', '')}`", "a query is one SELECT")
    def _(scene: Scene, query: str = query) -> object:
        return database(scene, query.replace("HERE", str(scene.folder)))


NUMBERS = "WITH RECURSIVE n(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM n)"


@attack("a query", "recursion that gives no row", "the query was interrupted")
def _(scene: Scene) -> object:
    scene.monkeypatch.setattr(sql, "MAX_WAIT_S", 0.2)
    return database(scene, f"{NUMBERS} SELECT count(*) FROM n")


@attack("a query", "recursion that gives rows without end", "the query was interrupted")
def _(scene: Scene) -> object:
    scene.monkeypatch.setattr(sql, "MAX_RECURSION_S", 0.2)
    return database(scene, f"{NUMBERS} SELECT a FROM n")


@attack("a folder of data", "a card that names files outside", "which is not in its folder")
def _(scene: Scene) -> object:
    scene.file("set/a.csv", "text\nfine\n")
    card = "---\nconfigs:\n- config_name: default\n  data_files: ../../outside/secret.csv\n---\n"
    scene.file("set/README.md", card)
    return rows(scene.data / "set")


@attack("a folder of data", "a card that names a server", "which is not in its folder")
def _(scene: Scene) -> object:
    scene.file("set/a.csv", "text\nfine\n")
    scene.file("set/README.md", f"---\nconfigs:\n- data_files: [{{split: train, path: {scene.web}/a.csv}}]\n---\n")
    return rows(scene.data / "set")


@attack("a folder of data", "a saved table that names a file outside", "which is not in its folder")
def _(scene: Scene) -> object:
    scene.file("set/dataset_info.json", "{}")
    scene.file("set/state.json", json.dumps({"_data_files": [{"filename": "../../outside/rows.arrow"}]}))
    return rows(scene.data / "set")


# ── images and sound ──
@attack("an image", "PostScript called `.png`", "not an image of a known format")
def _(scene: Scene) -> object:
    text = f"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({scene.marker}) (w) file\nshowpage\n%%EOF\n"
    return load_image({"path": str(scene.file("a.png", text)), "bytes": None})


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows_of_zeros = zlib.compress(bytes(10_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows_of_zeros) + chunk(b"IEND", b"")


@attack("an image", "10 KB that unpack to 30 GB", "too large an image")
def _(scene: Scene) -> object:
    return load_image({"path": str(scene.file("a.png", png(100_000, 100_000))), "bytes": None})


@attack("an image", "a file of 100 GB without content", "bytes; at most")
def _(scene: Scene) -> object:
    os.truncate(scene.file("a.png"), 100 * 2**30)
    return load_image({"path": str(scene.data / "a.png"), "bytes": None})


@attack("a recording", "1 sample a second", "1 samples a second")
def _(scene: Scene) -> object:
    soundfile.write(scene.data / "a.wav", np.zeros(1_000_000, np.int16), 1)
    return load_audio({"path": str(scene.data / "a.wav"), "bytes": None}, RATE)


@attack("a recording", "a FLAC that claims 256 GB", "its header claims")
def _(scene: Scene) -> object:
    content = bytearray(tone(scene.data / "a.flac").read_bytes())
    content[21] |= 0x0F  # the number of samples: 36 bits from the middle of byte 21
    content[22:26] = b"\xff" * 4
    return load_audio({"path": str(scene.file("a.flac", bytes(content))), "bytes": None}, RATE)


# ── models ──
@attack("a model", "code in an export that allows itself to run, and `y` on standard input", "exit code 2")
def _(scene: Scene) -> object:
    add_code(scene.data / "model", scene.marker)
    commit = "0123456789abcdef0123456789abcdef01234567"
    write_export(scene.data / "model", recipe_of(scene.data / "model", trust_remote_code=commit), "merged")
    file = scene.file("stdin", "y\n" * 20).open()
    scene.monkeypatch.setattr("sys.stdin", file)
    return f"exit code {predict.main([str(scene.data / 'model')])}"


@attack("a model", "an index of safetensors that names a pickle", "not safetensors, which can run code")
def _(scene: Scene) -> object:
    scene.file("model/model.safetensors.index.json", json.dumps({"weight_map": {"a": "weights.bin"}}))
    return weight_problems(scene.data / "model", allow_pickle=False)[0].message


@attack("a model", "an index that names a file outside", "names a file outside the folder")
def _(scene: Scene) -> object:
    scene.file("model/model.safetensors.index.json", json.dumps({"weight_map": {"a": "../../outside/w.safetensors"}}))
    return weight_problems(scene.data / "model", allow_pickle=True)[0].message


@attack("a model", "a tokenizer that adds 300,000 tokens", "adds 300,000 tokens; at most 200,000")
def _(scene: Scene) -> object:
    tokens = [{"id": number, "content": f"<{number}>"} for number in range(300_000)]
    scene.file("model/tokenizer.json", json.dumps({"added_tokens": tokens, "model": {"vocab": {}}}))
    return load_tokenizer(str(scene.data / "model"))


for file, content in {
    "tokenizer.json": {"added_tokens": [{"id": 4_000_000_000, "content": "a"}]},
    "tokenizer_config.json": {"added_tokens_decoder": {"99999999999": {"content": "a"}}},
    "added_tokens.json": {"a": 10**12},
    "vocab.json": {"a": 2**31},
}.items():

    @attack("a model", f"`{file}` with a huge id", "ids are at most 10,000,000")
    def _(scene: Scene, file: str = file, content: dict[str, Any] = content) -> object:
        scene.file(f"model/{file}", json.dumps(content))
        scene.file("model/config.json", "{}")
        recipe = make_recipe(
            model={"path": str(scene.data / "model")}, data={"source": str(scene.file("a.csv", "a\n"))}
        )
        return check_references(recipe)[0].message


# ── run folders ──
def run_folder(scene: Scene, name: str = "0123456789", **changes: Any) -> RunFolder:
    folder = RunFolder(scene.folder / "runs/demo" / name)
    folder.create(make_recipe(**changes))
    write_json(folder.plan_file, {"rows": {"splits": {"train": 64}}})
    folder.script.write_text("")
    (folder.source / "sft_dist").mkdir(parents=True)
    (folder.source / "sft_dist/train.py").write_text("pass")
    write_manifest(folder.path)
    source_digest.cache_clear()
    return folder


for name, file in {
    "recipe.json": "recipe.json",
    "plan.json": "plan.json",
    "source": "source/sft_dist/train.py",
}.items():

    @attack("a run folder", f"`{file}` is edited, then `resume`", f"changed since the run was made: {name}")
    def _(scene: Scene, file: str = file) -> object:
        folder = run_folder(scene)
        (folder.path / file).write_text(f"open({str(scene.marker)!r}, 'w')" if file.endswith(".py") else "{}")
        return plan_run_folder(folder.path, 1)


@attack("a run folder", "`run.sh` is edited, then `status`", "changed since the run was made: run.sh")
def _(scene: Scene) -> object:
    run_folder(scene).script.write_text(f"touch {scene.marker}")
    return describe_run_states(states_of([], str(scene.folder / "runs"))).splitlines()[-1]


@attack("a run folder", "another user's, that everyone may write, then `resume`", "belongs to another user")
def _(scene: Scene) -> object:
    folder = run_folder(scene)
    folder.path.chmod(0o777)
    scene.monkeypatch.setattr(os, "geteuid", lambda: 12345)
    return plan_run_folder(folder.path, 1)


for name, consent in {"allows it itself": True, "does not mention it": False}.items():

    @attack(
        "a run folder",
        f"a task of lm-eval that runs code, whose recipe {name}, then `eval`",
        "lets tasks of lm-eval run code",
    )
    def _(scene: Scene, consent: bool = consent) -> object:
        program = f"{{{{ cycler.__init__.__globals__.os.system('touch {scene.marker}') }}}}"
        task = scene.file("task.yaml", f'task: evil\ndataset_path: json\ndoc_to_text: "{program}"\n')
        settings = {"lm_eval": {"tasks": [str(task)], "allow_code": consent}}
        folder = run_folder(scene, task="instruction-tuning", evaluate=settings)
        return run_sweep([folder.path], folder.path, force=False)


for name in ("metrics.jsonl", "attempts/001/outcome.json", "attempts/001/launcher.log", "jobs.jsonl", "lock"):

    @attack("a run folder", f"a named pipe as `{name}` beside another run, then `status`", "demo/ID finished")
    def _(scene: Scene, name: str = name) -> object:
        fine, bad = run_folder(scene, "0000000001"), run_folder(scene, "0000000002")
        write_json(made := fine.new_attempt().outcome_file, {"state": "finished", "last_step": 1})
        assert made.is_file()
        bad.new_attempt()
        make_irregular("a named pipe", bad.path / name)
        return describe_run_states(states_of([], str(scene.folder / "runs"))).splitlines()[1]


@attack("a run folder", "rows that were shuffled after training, then `eval`", "not the one this run began with")
def _(scene: Scene) -> object:
    file, ids = scene.data / "splits.json", {"train": np.arange(3), "test": np.arange(3, 5)}
    keep_splits(file, ids, {"train": "aa", "test": "bb"})
    return check_splits(file, ids, {"train": "aa", "test": "cc"})


@attack("a run folder", "a checkpoint of another run", "belongs to another run")
def _(scene: Scene) -> object:
    folder, other = run_folder(scene), run_folder(scene, "9876543210", train={"lr": 0.5})
    staging = store.begin(folder, 1, 1)
    (staging / "weights").write_text("weights")
    checkpoint = store.publish(folder, 1, staging, store.describe(staging, [staging / "weights"]))
    other.checkpoints.mkdir()
    os.rename(checkpoint.path, other.checkpoint(1))
    return store.verify(store.Checkpoint(other.checkpoint(1), 1))


@attack("a run folder", "a rank that exits with 0 while others train", "rank 1 on node1: exited without an error")
def _(scene: Scene) -> object:
    heartbeats = (heartbeat(0, phase="ended"), heartbeat(1, time=9.0, phase="ended"))
    return classify_facts(Facts(errors=(error(0, PEER),), heartbeats=heartbeats)).line


# ── this machine ──
@attack("the cache", "a bit of prepared data is flipped", "all rows")
def _(scene: Scene) -> object:
    def build(folder: Path) -> None:
        (folder / "rows").write_text("all rows")

    with cached_folder(scene.folder / "cache" / "rows", build) as folder:
        (folder / "rows").write_text("all rowz")
    with cached_folder(scene.folder / "cache" / "rows", build) as folder:
        return (folder / "rows").read_text()


@attack("the cache", "a lock that is a symbolic link to a file outside", "Too many levels of symbolic links")
def _(scene: Scene) -> object:
    (scene.folder / "cache").mkdir()
    (scene.folder / "cache" / "rows.lock").symlink_to(scene.folder / "outside" / "secret.csv")
    try:
        with cached_folder(scene.folder / "cache" / "rows", lambda folder: None):
            return "built"
    except OSError as refusal:
        return refusal.strerror


for version in ("", "3.10"):

    @attack(
        "the working directory", f"`datasets.py` in it{version and f', Python {version}'}", "imported nothing of it"
    )
    def _(scene: Scene, version: str = version) -> object:
        for module in ("datasets", "json", "torch", "runpy", "sft_dist"):
            (scene.folder / "elsewhere" / f"{module}.py").write_text(f"open({str(scene.marker)!r}, 'w')")
        env = environment()
        if version:
            del env["PYTHONSAFEPATH"]
        command = module_command("sft_dist.count", [scene.file("recipe.json", "{}")])
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        return "imported nothing of it" if "ValidationError" in done.stderr else done.stderr


@attack("the data check", "its process is killed, then `submit`", "did not finish: it was killed by SIGKILL")
def _(scene: Scene) -> object:
    killed = subprocess.CompletedProcess([], -signal.SIGKILL, "")
    scene.monkeypatch.setattr(check, "_run_group", lambda command, env: killed)
    scene.file("model/config.json", "{}")
    source = scene.file("a.csv", "text,label\na,b\n")
    return check._report_of(make_recipe(model={"path": str(scene.data / "model")}, data={"source": str(source)}))


@attack("a cluster file", "a token in `environment`", "HF_TOKEN looks like a secret")
def _(scene: Scene) -> object:
    return read_cluster(scene.file("c.yaml", "cpus_per_node: 2\nenvironment: {HF_TOKEN: hf_abc}\n"))


@attack("a message", "a password in a URL", "postgresql://me:***@host/db")
def _(scene: Scene) -> object:
    return masked("postgresql://me:hunter2@host/db")


@attack("a message", "escape sequences of terminals", "\\x1b")
def _(scene: Scene) -> object:
    return printable("\x1b]52;c;ZXZpbA==\x07")


@attack("a recipe", "`steps: 1e9`, saved at each step", "at most 100,000 are planned")
def _(scene: Scene) -> object:
    recipe = make_recipe(train={"steps": 1_000_000_000, "epochs": None, "save_every": "1 step"})
    return steps_of(Recipe.model_validate(recipe), 64)


# ── the table ───────────────────────────────────────────────────────────────────────────────────────────────────────
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: f"{attack.subject}: {attack.input}")
def test_an_attack_is_refused_and_touches_nothing(scene: Scene, attack: Attack) -> None:
    before = scene.outside()
    with bounded():
        result = result_of(attack, scene)
    shown = scene.public(result)
    assert attack.expected in shown
    assert not scene.marker.exists(), "code was run"
    assert scene.outside() == before, "a file outside was written"
    assert scene.connections == [], "the network was touched"
    assert SECRET not in result, "the environment leaked"
    assert "Traceback" not in result
    if os.environ.get("GOLDEN") == "write":
        write_row(attack, row_of(attack, shown))
    assert rows_of_page().get((attack.subject, attack.input)) == row_of(attack, shown)


def test_the_page_shows_every_attack_and_no_other() -> None:
    assert list(rows_of_page()) == [(attack.subject, attack.input) for attack in ATTACKS]


def row_of(attack: Attack, shown: str) -> str:
    """One line: the expected words, and as much of the message as is the same with each version of a library."""
    start = shown.index(attack.expected)
    result = shown[: start + len(attack.expected)].replace("|", "/").replace("`", "'").rstrip(" (:")
    return f"| {attack.subject} | {attack.input} | {attack.expected.strip(' (:')} | `{result}` |"


def rows_of_page() -> dict[tuple[str, str], str]:
    """Returns (subject, input) -> line."""
    shown = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in shown.splitlines()[2:] if line]
    return {tuple(line.strip("| ").split(" | ")[:2]): line for line in lines}  # type: ignore[misc]


def write_row(attack: Attack, row: str) -> None:
    lines = {**rows_of_page(), (attack.subject, attack.input): row}
    keys = [(other.subject, other.input) for other in ATTACKS]
    head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    table = ["| what | input | expected | result |", "|---|---|---|---|", *(lines[key] for key in keys if key in lines)]
    PAGE.write_text(head + BEGIN + "\n".join(table) + "\n" + END + rest.partition(END)[2], encoding="utf-8")
