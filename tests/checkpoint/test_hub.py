import hashlib
import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from internvl2.checkpoint.hub import Located, hub_id, lasting_name, locate, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's protocol that downloads use, over the files of one folder."""

    def do_HEAD(self):
        self.answer(with_body=False)

    def do_GET(self):
        self.answer(with_body=True)

    def answer(self, with_body):
        path = unquote(urlsplit(self.path).path)
        prefix = f"/{self.server.repository}/resolve/"
        if path.startswith(f"/api/models/{self.server.repository}"):
            self.send_listing(with_body)
        elif path.startswith(prefix):
            name = path.removeprefix(prefix).split("/", 1)[1]
            self.send_file_content(name, with_body)
        else:
            self.send_headers(404, 0, {"X-Error-Code": "RepoNotFound"})

    def send_listing(self, with_body):
        names = sorted(path.name for path in self.server.folder.iterdir())
        rows = [
            {"type": "file", "path": name, "oid": name, "size": self.size(name)} for name in names
        ]
        siblings = [{"rfilename": name} for name in names]
        listing = {"id": self.server.repository, "sha": COMMIT, "siblings": siblings}
        body = json.dumps(rows if "/tree/" in self.path else listing).encode()
        self.send_headers(200, len(body), {"Content-Type": "application/json"})
        if with_body:
            self.wfile.write(body)

    def send_file_content(self, name, with_body):
        path = self.server.folder / name
        if not path.is_file():
            self.send_headers(404, 0, {"X-Error-Code": "EntryNotFound"})
            return
        content = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        status = 200
        if start:
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.send_headers(status, len(content) - start, headers)
        if with_body:
            self.server.fetched.append((name, start))
            cut = self.server.cuts.pop(name, None)
            self.wfile.write(content[start:][:cut])

    def send_headers(self, status, length, headers):
        self.send_response(status)
        for key, value in {"X-Repo-Commit": COMMIT, "Content-Length": length, **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()

    def size(self, name):
        return (self.server.folder / name).stat().st_size

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    """A hub on loopback with one repository, and a way to resolve names against it."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for name in ("config.json", "tokenizer.model", "model.safetensors", "model.safetensors.bak"):
        (folder / name).write_bytes(name.encode() * 1000)
    for name in ("README.md", "modeling_internvl_chat.py", "pytorch_model.bin", "photo.jpg"):
        (folder / name).write_bytes(b"not wanted")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repository, server.folder = "OpenGVLab/InternVL2-8B", folder
    server.fetched, server.cuts = [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.cache = tmp_path / "cache"
    yield server
    server.shutdown()
    server.server_close()


def resolved(hub, name, **environment):
    """What `resolve` prints in a new process: the hub's client reads its settings only once."""
    code = (
        "import sys\nfrom internvl2.checkpoint.hub import resolve\n"
        "try: print(resolve(sys.argv[1]))\n"
        "except (ValueError, FileNotFoundError) as error: sys.exit(str(error))\n"
    )
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(hub.cache),
        "PYTHONPATH": "src",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_ETAG_TIMEOUT": "2",
    }
    return subprocess.run(
        [sys.executable, "-c", code, name],
        env=settings | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["OpenGVLab/InternVL2-8B", "internvl2-8b", "InternVL2-8B"])
def test_name_downloads_only_the_files_needed(hub, name):
    run = resolved(hub, name)
    assert run.returncode == 0, run.stderr
    fetched = {name for name, _ in hub.fetched}
    assert fetched == {"config.json", "tokenizer.model", "model.safetensors"}
    for file in fetched:
        with open(f"{run.stdout.strip()}/{file}", "rb") as stored:
            assert stored.read() == (hub.folder / file).read_bytes()


@pytest.mark.slow
def test_cache_is_used_offline_and_when_the_hub_is_away(hub):
    first = resolved(hub, "internvl2-8b")
    hub.fetched.clear()
    assert resolved(hub, "internvl2-8b").stdout == first.stdout
    assert resolved(hub, "internvl2-8b", HF_HUB_OFFLINE="1").stdout == first.stdout
    away = resolved(hub, "internvl2-8b", HF_ENDPOINT="http://127.0.0.1:9")
    assert away.stdout == first.stdout
    assert hub.fetched == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}]
)
def test_without_cache_and_hub_the_error_says_what_to_do(hub, environment):
    run = resolved(hub, "internvl2-8b", **environment)
    assert run.returncode == 1
    assert "OpenGVLab/InternVL2-8B is not in the cache and the hub cannot be reached" in run.stderr
    assert "hf download OpenGVLab/InternVL2-8B --local-dir DIR" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_broken_download_resumes_where_it_stopped(hub):
    (hub.folder / "model.safetensors").write_bytes(bytes(range(256)) * 48 * 1024)
    hub.cuts["model.safetensors"] = 11_000_000
    run = resolved(hub, "internvl2-8b")
    assert run.returncode == 0, run.stderr
    starts = [start for name, start in hub.fetched if name == "model.safetensors"]
    assert len(starts) == 2
    assert starts[0] == 0 < starts[1]
    stored = Path(run.stdout.strip()) / "model.safetensors"
    assert stored.read_bytes() == (hub.folder / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_an_adapter_is_downloaded_and_found_offline(hub):
    for path in hub.folder.iterdir():
        path.unlink()
    for name in ("adapter_config.json", "adapter_model.safetensors", "optimizer.pt"):
        (hub.folder / name).write_bytes(name.encode())
    first = resolved(hub, "internvl2-8b")
    assert first.returncode == 0, first.stderr
    fetched = {name for name, _ in hub.fetched}
    assert fetched == {"adapter_config.json", "adapter_model.safetensors"}
    assert resolved(hub, "internvl2-8b", HF_HUB_OFFLINE="1").stdout == first.stdout


@pytest.mark.slow
def test_repository_that_does_not_exist_is_one_clear_error(hub):
    run = resolved(hub, "someone/else")
    assert "the hub has no model 'someone/else'" in run.stderr
    assert "Traceback" not in run.stderr


def test_directory_is_itself(tmp_path):
    assert resolve(tmp_path) == tmp_path


def test_file_is_refused(tmp_path):
    (tmp_path / "x").write_text("")
    with pytest.raises(ValueError, match="is a file; give the directory that holds"):
        resolve(tmp_path / "x")


@pytest.mark.parametrize("name", ["/no/such/place", "./no", "a/b/c", "checkpoints/"])
def test_missing_path_is_not_looked_up_on_the_hub(name):
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        resolve(name)


def test_unknown_short_name_names_near_misses():
    with pytest.raises(ValueError, match="did you mean internvl2-8b"):
        resolve("internvl2-8bb")


def test_other_repositories_keep_their_names():
    assert hub_id("OpenGVLab/InternVL2-8B-MPO") == "OpenGVLab/InternVL2-8B-MPO"
    assert hub_id("me/my-tuned-internvl2") == "me/my-tuned-internvl2"
    assert hub_id("opengvlab/internvl2-8b") == "OpenGVLab/InternVL2-8B"


def test_a_directory_has_no_revision(tmp_path: Path):
    with pytest.raises(ValueError, match=r"is no model on the hub, so there is no revision 'v2'"):
        resolve(tmp_path, revision="v2")


def test_a_folder_near_by_does_not_hide_the_built_in_model(tmp_path: Path, monkeypatch):
    (tmp_path / "nano").mkdir()
    monkeypatch.chdir(tmp_path)
    assert (resolve("nano") / "config.json").is_file()
    assert lasting_name("nano") == "nano"
    assert resolve("./nano") == resolve(Path("nano")) == Path("nano")
    assert lasting_name("./nano") == str(tmp_path / "nano")


def test_a_model_is_told_by_its_name_and_where_it_is_from(tmp_path: Path):
    assert locate("nano").origin == "nano (in the package)"
    assert locate(tmp_path).origin == str(tmp_path)
    downloaded = Located(tmp_path, "internvl2-2b", tmp_path / "mine")
    assert downloaded.origin == f"OpenGVLab/InternVL2-2B (from the hub) with {tmp_path / 'mine'}"


def test_an_adapter_brings_the_name_of_its_base(tmp_path: Path):
    config = {"peft_type": "LORA", "base_model_name_or_path": "nano", "r": 1, "lora_alpha": 1}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["q"]}))
    assert locate(tmp_path).origin == f"nano (in the package) with {tmp_path}"
