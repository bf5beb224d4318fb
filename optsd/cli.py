"""`optsd NAME …`: what is not a test. Each command is a module with `main(arguments) -> exit status`."""

import importlib
import sys

from optsd import __version__
from optsd.errors import OptsdError
from optsd.terminals import survive

COMMANDS = {
    # name -> (module, what it does)
    "generate": ("optsd.generate", "draw pictures with a variant"),
    "bench": ("optsd.benching", "run the benches, in any project"),
    "init": ("optsd.init", "write what a repository needs to be benched and gated"),
    "compare": ("optsd.compare", "judge two finished runs"),
    "history": ("optsd.report.history", "the course of every figure over a gate's sessions"),
    "tune": ("optsd.tune.command", "the best variant for this machine, this model and this much quality"),
    "diverge": ("optsd.diverge", "where two variants first part by more than rounding"),
    "report": ("optsd.report.command", "write the report of a results.json again"),
    "coco": ("optsd.data.coco", "fetch and verify COCO's captions, make the standard prompts"),
    "claims": ("optsd.claims.command", "what others have published, and which of it can be true"),
    "estimate": ("optsd.estimate.command", "what a claim could be at best, without a GPU"),
    "shapes": ("optsd.quality.shapes", "how good the shipped model and its judge are"),
    "sensitivity": ("optsd.quality.sensitivity", "what quantizing each kind of layer costs in quality"),
    "doctor": ("optsd.doctor", "what this machine can run"),
}

_HELP = """usage: optsd COMMAND [OPTION ...]

{commands}

The benches are pytest's:
  optsd bench                        every variant of the guide, on the shipped model (in a checkout: pytest bench)
  optsd bench --variant=int4         that one, against the baseline
  optsd bench --model sd15 --preset guide --claims

optsd COMMAND --help tells more. optsd --version prints {version}."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit status. An error of the user's is one line on stderr and status 2."""
    survive()
    words = sys.argv[1:] if arguments is None else arguments
    if words and words[0] == "--version":
        print(__version__)
        return 0
    if not words or words[0] in ("-h", "--help"):
        commands = "\n".join(f"  {name:<12} {purpose}" for name, (_, purpose) in COMMANDS.items())
        print(_HELP.format(commands=commands, version=__version__))
        return 0
    name, *rest = words
    if name not in COMMANDS:
        print(f"optsd: unknown command {name!r}; choose from {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(COMMANDS[name][0]).main(rest)
    except OptsdError as error:
        print(f"optsd: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # no permission, no space, a path that is too long
        print(f"optsd: {error}; make room or give permission there, or go elsewhere", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("optsd: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
