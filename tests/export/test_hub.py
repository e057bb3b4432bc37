"""A push is private, is checked before training, and never shows the token."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from lora_sft.errors import CapabilityError, ExportError
from lora_sft.export.hub import check_can_push
from lora_sft.export.staging import OWNER_FILE, Owner, write_owner_file
from tests.commands import run_process
from tests.tiny import make_tiny_llama

TOKEN = "hf_" + "notarealtoken" * 2
PUSH = "from pathlib import Path; from lora_sft.export.hub import push_folder; " + (
    "import sys; push_folder(Path(sys.argv[1]), 'me/model')"
)


class Hub(BaseHTTPRequestHandler):
    """A local hub that creates a repository and refuses every upload."""

    def do_GET(self) -> None:
        self._answer(200, {"name": "me", "id": "me/model", "private": True})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.server.seen.append((self.path, body))  # type: ignore[attr-defined]
        is_creation = self.path == "/api/repos/create"
        document = {"url": "http://127.0.0.1/me/model"} if is_creation else {"error": "full"}
        self._answer(200 if is_creation else 507, document)

    def _answer(self, status: int, document: dict[str, object]) -> None:
        text = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.seen = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_push_without_a_hub_is_refused_before_training(command, write_recipe, tmp_path):
    outcome = command("train", write_recipe(export={"push_to_hub": "me/model"}))
    assert outcome.code == 5
    lines = outcome.stderr.strip().splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "where", "fix"]
    assert "HF_HUB_OFFLINE switches the hub off" in lines[0]
    assert f"{tmp_path / 'recipe.yaml'}" in lines[1]
    assert "export.push_to_hub" in lines[1]
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_missing_token_or_a_wrong_name_is_an_error_without_a_request(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(CapabilityError, match="there is no token for the hub"):
        check_can_push("me/model", "my.yaml:3  export.push_to_hub")
    with pytest.raises(ExportError, match="not a valid name of a repository"):
        check_can_push("me/a/model", "my.yaml:3  export.push_to_hub")


def test_a_new_repository_is_private_and_the_token_is_not_shown_or_saved(tmp_path, hub):
    folder = make_tiny_llama(tmp_path / "merged")
    origin = {"model_name_or_path": str(tmp_path / "base"), "revision": None}
    (folder / "lora_sft.json").write_text(json.dumps(origin))
    write_owner_file(folder, Owner("id", tmp_path / "run"))
    settings = {
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": TOKEN,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
    }
    outcome = run_process(sys.executable, "-c", PUSH, folder, **settings)
    assert outcome.code == 1
    assert "error: the request to the hub failed" in outcome.stderr
    path, created = hub.seen[0]
    assert path == "/api/repos/create"
    asked = json.loads(created)  # huggingface_hub 2.4 sends `visibility`, older versions `private`
    assert asked.get("private") is True or asked.get("visibility") == "private"
    assert len(hub.seen) > 1, "no upload was tried"
    assert all(TOKEN.encode() not in body for _path, body in hub.seen)
    assert any(b"config.json" in body for _path, body in hub.seen)
    assert all(OWNER_FILE.encode() not in body for _path, body in hub.seen)
    assert TOKEN not in outcome.stdout + outcome.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_a_link_out_of_the_folder_is_not_uploaded(tmp_path, hub):
    folder = make_tiny_llama(tmp_path / "merged")
    (tmp_path / "private").write_text("PRIVATE TEXT")
    (folder / "NOTICE").symlink_to("../private")
    (folder / "LICENSE").symlink_to("config.json")
    settings = {
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": TOKEN,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
    }
    outcome = run_process(sys.executable, "-c", PUSH, folder, **settings)
    assert "NOTICE is not uploaded: it is a link to a file elsewhere" in outcome.stderr
    bodies = [body for _path, body in hub.seen]
    assert any(b"LICENSE" in body for body in bodies)
    assert all(b"NOTICE" not in body and b"PRIVATE" not in body for body in bodies)
