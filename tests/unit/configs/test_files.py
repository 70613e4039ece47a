"""Files of secrets: complete or absent, private, and never through what somebody else has put in the way."""

from __future__ import annotations

import contextlib
import os
import resource
import secrets
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from configs.files import atomic_write, describe_os_error, durable_create, durable_write, read_regular_file
from configs.paths import existing_internal_token, internal_token, log_dir, private_dir, run_dir

needs_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
Write = Callable[[Path, bytes], object]


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow: writes fail as on a full disk, and creating an empty file succeeds."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("write", [atomic_write, durable_write, durable_create])
def test_failed_write_leaves_nothing_and_names_file(tmp_path: Path, write: Write) -> None:
    with full_disk(), pytest.raises(OSError, match="File too large") as failure:
        write(tmp_path / "secret", b"x" * 43)
    assert failure.value.filename == str(tmp_path / "secret")
    assert describe_os_error(failure.value) == f"{tmp_path}/secret: File too large"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("write", [atomic_write, durable_write, durable_create])
def test_prepared_draft_is_neither_used_nor_followed(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    monkeypatch.setattr(secrets, "token_hex", lambda size: "0" * 2 * size)
    (tmp_path / f".secret.{'0' * 16}").symlink_to(victim)
    with pytest.raises(FileExistsError) as failure:
        write(tmp_path / "secret", b"secret")
    assert failure.value.filename == str(tmp_path / "secret")
    assert victim.read_bytes() == b"mine"
    assert not (tmp_path / "secret").exists()


@pytest.mark.parametrize("write", [atomic_write, durable_write, durable_create])
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_written_file_is_private_whatever_the_umask(tmp_path: Path, write: Write, umask: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "secret", b"secret")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["secret"]


def test_create_changes_nothing_that_is_there(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    assert durable_create(file, b"first")
    assert not durable_create(file, b"second")
    assert not durable_create(link, b"second"), "a link is not followed"
    assert file.read_bytes() == b"first"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "link"]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"x" * 11)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name, reason in {
        "pipe": "not a regular file",
        ".": "Is a directory",
        "large": "File too large",
        "loop": "symbolic links",
        "none": "No such file",
    }.items():
        with pytest.raises(OSError, match=reason) as failure:
            read_regular_file(tmp_path / name, 10)
        assert failure.value.filename == str(tmp_path / name)
    with pytest.raises(OSError, match="not a regular file"):
        read_regular_file(Path("/dev/full"))


# ---- the internal token


def token_file(data_dir: Path) -> Path:
    return run_dir(data_dir) / "internal.token"


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"torn", secrets.token_urlsafe(32).encode()[:42], b"\0" * 43, b"\xff" * 43, b"a b" * 15],
    ids=["empty", "newline", "torn", "short", "zeros", "not ASCII", "blanks"],
)
def test_incomplete_token_is_replaced(tmp_path: Path, content: bytes) -> None:
    token_file(tmp_path).write_bytes(content)
    assert existing_internal_token(tmp_path) is None, "a client never sends it"
    token = internal_token(tmp_path)
    assert len(token) >= 43
    assert token_file(tmp_path).read_text() == token == internal_token(tmp_path) == existing_internal_token(tmp_path)
    assert stat.S_IMODE(token_file(tmp_path).stat().st_mode) == 0o600


def test_dangling_link_for_the_token_is_replaced(tmp_path: Path) -> None:
    token_file(tmp_path).symlink_to(tmp_path / "elsewhere")
    token = internal_token(tmp_path)
    assert not token_file(tmp_path).is_symlink()
    assert internal_token(tmp_path) == token
    assert not (tmp_path / "elsewhere").exists()


def test_folder_in_place_of_the_token_is_an_error(tmp_path: Path) -> None:
    token_file(tmp_path).mkdir()
    with pytest.raises(OSError, match="Is a directory") as failure:
        internal_token(tmp_path)
    assert failure.value.filename == str(token_file(tmp_path))


@needs_user
def test_unreadable_token_is_an_error_and_stays(tmp_path: Path) -> None:
    token = internal_token(tmp_path)
    token_file(tmp_path).chmod(0)
    with pytest.raises(PermissionError) as failure:
        internal_token(tmp_path)
    assert failure.value.filename == str(token_file(tmp_path))
    token_file(tmp_path).chmod(0o600)
    assert internal_token(tmp_path) == token


def test_first_start_on_a_full_disk_heals_itself(tmp_path: Path) -> None:
    run_dir(tmp_path)
    with full_disk(), pytest.raises(OSError, match="File too large") as failure:
        internal_token(tmp_path)
    assert failure.value.filename == str(token_file(tmp_path))
    assert existing_internal_token(tmp_path) is None
    assert internal_token(tmp_path) == internal_token(tmp_path)


@pytest.mark.parametrize("torn", [False, True])
def test_all_that_start_at_once_agree_on_a_token(tmp_path: Path, torn: bool) -> None:
    if torn:
        token_file(tmp_path).write_bytes(b"")
    with ThreadPoolExecutor(16) as threads:
        tokens = set(threads.map(internal_token, [tmp_path] * 64))
    assert tokens == {token_file(tmp_path).read_text()}


# ---- private folders


def test_private_folder_is_created_and_tightened(tmp_path: Path) -> None:
    folder = private_dir(tmp_path / "a" / "b")
    assert [stat.S_IMODE(each.stat().st_mode) for each in (folder, folder.parent)] == [0o700, 0o700]
    folder.chmod(0o755)
    assert stat.S_IMODE(private_dir(folder).stat().st_mode) == 0o700
    assert stat.S_IMODE(log_dir(tmp_path).stat().st_mode) == 0o700


@pytest.mark.parametrize("is_dangling", [False, True])
def test_private_folder_is_never_a_link(tmp_path: Path, is_dangling: bool) -> None:
    target = tmp_path / "of somebody"
    if not is_dangling:
        target.mkdir()
        target.chmod(0o755)
    (tmp_path / "folder").symlink_to(target)
    with pytest.raises(OSError, match="is a link") as failure:
        private_dir(tmp_path / "folder")
    assert failure.value.filename == str(tmp_path / "folder")
    assert is_dangling or stat.S_IMODE(target.stat().st_mode) == 0o755


def test_file_is_no_private_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        private_dir(tmp_path / "file")


def test_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = Path("/usr")
    if os.geteuid() == 0:
        folder = tmp_path / "folder"
        folder.mkdir(mode=0o755)
        os.chown(folder, 12345, -1)
    mode = folder.stat().st_mode
    with pytest.raises(PermissionError, match="belongs to another user"):
        private_dir(folder)
    assert folder.stat().st_mode == mode
