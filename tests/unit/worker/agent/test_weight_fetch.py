"""Files of models reach another machine whole, whatever is lost, late or cut short; nothing else is written there."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.model_settings import Model
from loadbalancer.transport.weight_files import WeightFiles
from scripts.harness.processes import wait_until
from wire.agents import FileInfo, FileList, FilePart, FromAgent, ListFiles, ReadFile
from worker.agent.weight_fetch import PART_BYTES, WeightFetch

BIG = 5 * PART_BYTES + 17


def checkpoint(folder: Path) -> Path:
    """Make a folder with weights, and with files that are not sent."""
    root = folder / "my-model"
    (root / "unet").mkdir(parents=True)
    (root / "unet" / "model.safetensors").write_bytes(random.Random(1).randbytes(BIG))
    (root / "model_index.json").write_text("{}")
    (root / "empty.txt").touch()
    (root / "run.py").write_text("print('no')")
    (root / ".secret.json").write_text("no")
    return root


def server_of(root: Path) -> WeightFiles:
    return WeightFiles({"m": Model(path=str(root))})


class Link:
    """Carries questions to the files and answers back, as `deliver` is called."""

    def __init__(self, files: WeightFiles, folder: Path, max_bytes: int = 1 << 30) -> None:
        self.files = files
        self.asked: list[FromAgent] = []
        self.fetch = WeightFetch(folder, max_bytes, self.asked.append)
        self.fetch.want({"m": "m"})
        self.done = False

    def deliver(self, lose: Callable[[], bool] = lambda: False, spoil: Callable[[bytes], bytes] = bytes) -> None:
        """Let the agent run once, and answer what it asks, in another order."""
        self.done = self.done or self.fetch.run() == "m"
        asked, self.asked[:] = list(self.asked), []
        for message in reversed(asked):
            if lose():
                continue
            if isinstance(message, ListFiles):
                self.fetch.on_list(self.files.list_files(message.model))
            elif isinstance(message, ReadFile):
                part, data = self.files.read_part(message.model, message.file, message.offset, message.size)
                self.fetch.on_part(part, spoil(data))


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def expected(root: Path) -> dict[str, bytes]:
    sent = {name: data for name, data in content(root).items() if name not in ("run.py", ".secret.json")}
    return {f"m/path/my-model/{name}": data for name, data in sent.items()} | {"m/complete": b""}


@given(seed=st.integers(0, 10**6), stops=st.lists(st.integers(1, 6), max_size=4))
@settings(max_examples=15, deadline=None)
def test_files_arrive_whole_in_spite_of_losses(
    tmp_path_factory: pytest.TempPathFactory, seed: int, stops: list[int]
) -> None:
    folder, rng = tmp_path_factory.mktemp("fetch"), random.Random(seed)
    root = checkpoint(folder)
    link = Link(server_of(root), folder / "weights")
    for rounds in stops:  # the agent ends, and the next one goes on
        for _ in range(rounds):
            link.deliver(lose=lambda: rng.random() < 0.3)
        link = Link(link.files, folder / "weights")

    def is_done() -> bool:
        if rng.random() < 0.1:
            link.fetch.on_reconnect()
        link.deliver(lose=lambda: rng.random() < 0.05)
        return link.done

    wait_until(is_done, "all files")
    assert content(folder / "weights") == expected(root)


def test_files_are_on_the_disk_before_they_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut, a file of the right name and size that lost its content would be trusted for ever."""
    synced: set[int] = set()
    real_fsync, real_replace, real_touch = os.fsync, Path.replace, Path.touch

    def fsync(handle: int) -> None:
        real_fsync(handle)
        synced.add(os.fstat(handle).st_ino)

    def replace(part: Path, file: Path) -> Path:
        assert part.stat().st_ino in synced, f"{file.name} gets its name before its content is on the disk"
        synced.discard(file.parent.stat().st_ino)
        return real_replace(part, file)

    def touch(file: Path) -> None:
        if file.name == "complete":
            entries = [tmp_path / "weights", *(tmp_path / "weights").rglob("*")]
            assert [each for each in entries if each.stat().st_ino not in synced] == []
        real_touch(file)

    link = Link(server_of(checkpoint(tmp_path)), tmp_path / "weights")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(Path, "touch", touch)

    def is_done() -> bool:
        link.deliver()
        return link.done

    wait_until(is_done, "all files")
    assert (tmp_path / "weights" / "m" / "complete").exists()


def test_content_that_the_disk_refuses_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    link = Link(server_of(checkpoint(tmp_path)), tmp_path / "weights")
    monkeypatch.setattr(os, "fsync", fsync)

    def has_failed() -> bool:
        link.deliver()
        return "cannot be fetched" in link.fetch.states.get("m", "")

    wait_until(has_failed, "the problem")
    assert link.fetch.states["m"].endswith("empty.txt.part: Input/output error")
    assert content(tmp_path / "weights") == {}


def test_spoilt_part_is_found_by_the_hash(tmp_path: Path) -> None:
    link = Link(server_of(checkpoint(tmp_path)), tmp_path / "weights")

    def has_failed() -> bool:
        link.deliver(spoil=lambda data: bytes(len(data)))
        return "another SHA-256" in link.fetch.states.get("m", "")

    wait_until(has_failed, "the problem")
    assert "m/complete" not in content(tmp_path / "weights")
    assert not any(name.endswith(".safetensors") for name in content(tmp_path / "weights"))


@pytest.mark.parametrize(
    "path",
    [
        "../x.json",
        "/etc/x.json",
        "path/../../x.json",
        "path/.ssh/x.json",
        "x.json",
        "path/run.py",
        "path/x.bin",
        "path/",
    ],
)
def test_unsafe_name_of_the_server_is_not_written(tmp_path: Path, path: str) -> None:
    link = Link(WeightFiles({}), tmp_path / "weights")
    link.fetch.run()
    link.fetch.on_list(FileList("m", [FileInfo(path, 1, "0" * 64)]))
    assert "not taken" in link.fetch.states["m"]
    assert not list(tmp_path.rglob("x.*"))


def test_size_is_bounded_by_the_configuration(tmp_path: Path) -> None:
    link = Link(server_of(checkpoint(tmp_path)), tmp_path / "weights", max_bytes=BIG - 1)
    link.deliver()
    link.deliver()
    assert "agent.max_fetched_bytes leaves" in link.fetch.states["m"]
    link = Link(link.files, tmp_path / "weights", max_bytes=0)
    link.deliver()
    assert not link.asked


def test_only_listed_files_are_read(tmp_path: Path) -> None:
    files = server_of(checkpoint(tmp_path))
    assert files.read_part("m", 0, 0, 10)[0].problem == "its files are not listed"
    assert files.list_files("other").problem == "models.other does not exist"
    listed = files.list_files("m").files
    assert [each.path.rpartition("/")[2] for each in listed] == ["empty.txt", "model_index.json", "model.safetensors"]
    assert files.read_part("m", 1, 0, 10) == (FilePart("m", 1, 0), b"{}")
    assert files.read_part("m", len(listed), 0, 10)[0].problem
    assert files.read_part("m", 1, 100, 10)[0].problem == "the file has become shorter"


def test_files_whose_end_cannot_be_noted_are_tried_again(tmp_path: Path) -> None:
    """Such as on a full disk. The agent goes on with its workers."""
    link = Link(server_of(checkpoint(tmp_path)), tmp_path / "weights")
    (tmp_path / "weights" / "m").mkdir(parents=True)
    (tmp_path / "weights" / "m" / "complete").symlink_to(tmp_path / "missing" / "file")

    def has_failed() -> bool:
        link.deliver()
        return "cannot be fetched" in link.fetch.states.get("m", "")

    wait_until(has_failed, "the failure")
    assert not link.done
