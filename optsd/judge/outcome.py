"""What the verdicts of a run mean for its exit status, and the last lines that say so."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from optsd.judge.verdicts import failing, nothing_was_judged
from optsd.records import Verdict

QUESTIONS = {"--against": "AGAINST", "--gate": "GATE", "--claims": "CLAIMS", "--quality": "QUALITY"}
"""The options that ask for verdicts, and what their answers are called."""
_MOST_NAMED = 3


@dataclass
class Outcome:
    """The answers so far, by the option that asked for them, and what else fails the run."""

    answers: dict[str, tuple[Verdict, ...]] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)  # of answers that judged nothing
    failed: list[Verdict] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)  # for the terminal
    recorded: int = 0  # figures, with --expected-update: the run fails, so that no gate updates itself
    broken: bool = False  # benches failed, or something that was asked for could not be done

    @property
    def fails(self) -> bool:
        return bool(self.failed or self.why or self.recorded or self.broken)

    def answer(self, option: str, verdicts: tuple[Verdict, ...], remedy: str = "") -> None:
        """Keep what was found. `remedy`: of finding nothing; by default what the first verdict says."""
        self.answers[option] = verdicts
        self.failed += failing(verdicts, gate=True)
        if nothing_was_judged(verdicts):
            self.why[option] = remedy or _why_nothing(option, verdicts)
            self.lines.append(f"{option} judged nothing: {self.why[option]}")

    def at_last(self, asked: Iterable[str], complete: bool = True) -> list[tuple[str, bool]]:
        """A line for each question, and whether it is bad news: `GATE FAILED: int8 speedup regressed; 30 ok`.

        Verdicts that answer another question are no part of it. A run that was cut off passes nothing.
        """
        said = [self._said(option, complete) for option in asked]
        theirs = [row for rows in self.answers.values() for row in rows]
        if said and not any(bad for _, bad in said) and (self.broken or any(row not in theirs for row in self.failed)):
            said.append(("THE RUN FAILED, whatever was judged: see above", True))
        return said

    def _said(self, option: str, complete: bool) -> tuple[str, bool]:
        name = QUESTIONS[option]
        if option not in self.answers:
            return f"{name} FAILED: {self.lines[-1] if self.lines else 'it was not asked'}", True
        failed = failing(self.answers[option], gate=True)
        if option in self.why and not failed:
            return f"{name} FAILED: nothing could be judged: {self.why[option]}", True
        parts = [_named(failed), "" if complete else "the run was cut off", _counted(self.answers[option], failed)]
        bad = bool(failed) or option in self.why or not complete
        said = "; ".join(filter(None, parts))
        return f"{name} {'FAILED' if bad else 'PASSED'}" + (f": {said}" if said else ""), bad


def _named(failed: Sequence[Verdict]) -> str:
    named = [f"{row.variant} {row.metric} {row.status}" for row in failed[:_MOST_NAMED]]
    more = [f"{len(failed) - _MOST_NAMED} more"] if len(failed) > _MOST_NAMED else []
    return ", ".join([*named, *more])


def _counted(verdicts: Iterable[Verdict], failed: Sequence[Verdict]) -> str:
    """What neither failed nor was about something else."""
    counts = Counter(row.status for row in verdicts if row not in failed and row.status != "not comparable")
    return ", ".join(f"{count} {status}" for status, count in counts.items())


def _why_nothing(option: str, verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return "no row is about the variants of this run"
    remedy = "; record again with --expected-update" * (option == "--gate" and verdicts[0].status == "not comparable")
    return f"{verdicts[0].status}, {verdicts[0].note}{remedy}"
