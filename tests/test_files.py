import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from optsd import files
from optsd.errors import BadInput
from optsd.files import check_writable, home, plain_name, without_user, write_atomically


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch) -> None:
    file = tmp_path / "results.json"
    write_atomically(file, "old")

    def fail(descriptor: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BadInput, match=r"results.json \(disk full\); make room or give permission there"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_home_is_where_the_user_says(monkeypatch) -> None:
    monkeypatch.setenv("OPTSD_HOME", "~/elsewhere")
    assert home() == Path.home() / "elsewhere"
    monkeypatch.delenv("OPTSD_HOME")
    assert home() == Path.home() / ".cache" / "optsd"


@pytest.fixture
def homeless(monkeypatch, tmp_path) -> Path:
    """A container's user: no HOME, and a number that the system does not know. Where temporary files go."""

    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("OPTSD_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_without_a_home_directory_files_are_kept_among_the_temporary_ones(homeless: Path) -> None:
    assert home() == home() == homeless / f"optsd-{os.getuid()}"
    assert home().stat().st_mode & 0o777 == 0o700
    assert without_user("/somewhere/else") == "/somewhere/else"


@pytest.mark.parametrize("trap", ["link", "open", "file"])
def test_a_folder_that_others_could_write_to_is_not_taken_for_home(homeless: Path, trap: str) -> None:
    folder = homeless / f"optsd-{os.getuid()}"
    if trap == "link":
        folder.symlink_to(homeless)
    elif trap == "open":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        folder.touch()
    with pytest.raises(BadInput, match="set OPTSD_HOME"):
        home()


def test_a_number_without_a_name_has_a_home() -> None:
    """The real thing, as containers have it."""
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        code = (
            "import os; from optsd.files import home, without_user; os.setuid(54321); print(home(), without_user(''))"
        )
        environment = {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": folder}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == f"{folder}/optsd-54321", done.stderr


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadInput, match="--output .*/file/x cannot be written .*; name another folder"):
        check_writable(tmp_path / "file" / "x", "--output")
    with pytest.raises(BadInput, match="cannot write"):
        write_atomically(tmp_path / "file" / "x", "")
    check_writable(tmp_path / "new" / "folder", "--output")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("pytest --model=/home/ada/models/sd", "pytest --model=~/models/sd"),
        ("/home/ada", "~"),
        ("/home/adam/x /home/ada-2", "/home/adam/x /home/ada-2"),
        ("/mnt/ada/sd and /tmp/pytest-of-ada/pytest-0", "/mnt/user/sd and /tmp/pytest-of-user/pytest-0"),
        ("int8+flash, an adapter of ada", "int8+flash, an adapter of ada"),
    ],
)
def test_no_user_is_named(monkeypatch, text: str, expected: str) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.setenv("USER", "ada")
    assert without_user(text) == expected


def test_a_variants_name_is_safe_as_a_files_and_each_its_own() -> None:
    assert plain_name("deepcache:3+flash") == "deepcache-3+flash"
    many = ":".join(f"up_blocks.{number}.*=int4" for number in range(40))
    names = ["int8:up*=int4", "int8:up?=int4", "int8:up_=int4", f"int8:{many}", f"int8:{many}:mid*=int4"]
    plain = [plain_name(name) for name in names]
    assert len({*plain}) == len(names)
    for name in plain:
        assert not set(name) & set('<>:"/\\|?* ')  # Windows, and the uploads of CI, refuse these
        assert len(name) < 100
