import subprocess
import sys

import pytest

from optsd import cli
from optsd.errors import BadInput


def test_help_names_every_command(capsys) -> None:
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)


def test_unknown_command(capsys) -> None:
    assert cli.main(["nosuch"]) == 2
    assert "unknown command 'nosuch'; choose from generate" in capsys.readouterr().err


def test_an_error_of_the_users_is_one_line(monkeypatch, capsys) -> None:
    class Broken:
        @staticmethod
        def main(arguments: list[str]) -> int:
            raise BadInput("it is wrong", "put it right")

    monkeypatch.setattr(cli.importlib, "import_module", lambda name: Broken)
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err == "optsd: it is wrong; put it right\n"


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_has_help(command: str, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([command, "--help"])
    assert left.value.code == 0
    assert f"optsd {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "module", ["optsd", "optsd.cli", "optsd.variants", "optsd.models", "optsd.judge", "optsd.report", "optsd.workloads"]
)
def test_light_modules_import_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
