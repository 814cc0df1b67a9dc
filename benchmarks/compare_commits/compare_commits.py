"""Runs every command at two checkouts and compares what they write, bit for bit.

    python benchmarks/compare_commits/compare_commits.py --before=FOLDER --after=FOLDER \\
        --work=FOLDER [--only=embed]

Small real cells (see compare_cells.py) go through all commands and the functions of Python
(compare_calls.py). Each command of compare_commands.py is a process of its own,
in the folder of its checkout, with the interpreter of this one. What the side `before` wrote is
kept in WORK/before as long as its checkout and the commands stay the same; `after` runs anew, or
with --only just the commands whose names begin so, those that need them, and those that failed.
What commands print is in WORK/SIDE/log and is not compared. WORK/report.txt names every file; what
is not equal is printed here. The exit status is 1 if a command failed, or if something differs that
none of the tables below explains.
"""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from absl import app, flags, logging
from compare_cells import DATA, make_cells
from compare_commands import COMMANDS, needed
from compare_outputs import Explanations, Side, compare_sides, summary

BEFORE = flags.DEFINE_string("before", None, "checkout to compare with", required=True)
AFTER = flags.DEFINE_string("after", None, "checkout that is compared", required=True)
WORK = flags.DEFINE_string("work", None, "folder for cells, outputs and report", required=True)
ONLY = flags.DEFINE_list("only", [], "of `after`, run again only what begins so")

# What is spelled differently by the side `after`: (command, or "" for all; word) -> word. A word is
# a flag with its dashes ("--cells_at_most", "--config.task.group"), a whole argument
# ("--config=configs/quickstart.py") or the command itself. "" leaves the argument out.
SPELLED_AFTER: dict[tuple[str, str], str] = {
    ("", "--cells_at_most"): "--max_cells",
    ("", "--config.data.most_buckets"): "--config.data.max_buckets",
    ("", "--config.task.cells_at_most"): "--config.task.max_cells",
    ("", "--config.task.valid_share"): "--config.task.valid_fraction",
    ("attend", "--group_by"): "--groupby",
    ("attend", "--least_cells"): "--min_cells",
    ("embed", "--layer"): "--hidden_layer",
    ("perturb", "--layer"): "--hidden_layer",
    ("predict", "--label"): "--labels_key",
}

# The same for pieces of the text of compare_calls.py.
CALLED_AFTER: dict[str, str] = {"layer=": "hidden_layer="}

# What differs on purpose; all patterns are those of `re.search`, paths those of the report.
EXPLAINED = Explanations(
    # (pattern of a path in `before`, its replacement, reason)
    files=[
        ("TF_names_v_1_01_vs", "TF_names_v_1.01_vs", "one way to turn a text into a file name"),
        (r"^(finetune_\w+)/task\.json$", r"\1/plan.json", "one way to resume"),
    ],
    # (pattern of the file, pattern of a column, array or key in `before`, replacement, reason): a
    # column NAME can also have items NAME.type, NAME.values and NAME.lengths, so leave its end
    # open. Flags of SPELLED_AFTER are renamed in provenances by themselves.
    items=[
        ("", r"\bdoor$", "command", "a provenance names its command"),
        ("", r"\bmasking\.(selected|mask|random)_share", r"masking.\1_fraction", "words"),
        ("", r"\b(data\.)?most_buckets", r"\1max_buckets", "words"),
        ("", r"\b(test|valid)_share", r"\1_fraction", "words"),
        ("", r"\bleast_share", "min_fraction", "words"),
        ("", r"\b(task|section)\.cells_at_most", r"\1.max_cells", "words"),
        ("", r"\btold\b", "summary", "words"),
        ("", r"\bconfiguration\.batch$", "configuration.batch_key", "words"),
        ("^(embed|perturb)", r"\bconfiguration\.layer$", "configuration.hidden_layer", "words"),
        ("", r"\bconfiguration\.group_by", "configuration.groupby", "words"),
        ("", r"mitochondrial share", "mitochondrial fraction", "words"),
        ("^(embed|perturb)", r"\bcounts\.layer\b", "counts.hidden_layer", "no layer of AnnData"),
        ("^(embed|calls)", "^uns/geneformer/layer", "uns/geneformer/hidden_layer", "the same"),
        ("", r"geneformer_states\.layer", "geneformer_states.hidden_layer", "the same"),
    ],
    # (pattern of the file, pattern of the item, reason); a file on one side has the item "".
    differences=[
        ("^attend|^calls/attention", "received_sd|excess_(se|low)", "squares about an even share"),
        ("^attend.*report", "^table", "squares about an even share"),
        ("^perturb.*/report.html$", "^table", "moments without the difference of large sums"),
        ("^attend.*provenance", r"counts\.throughput", "reported for every model"),
        ("^predict", r"configuration\.tokens_per_device", "a flag that other commands have"),
        ("^merged/provenance", r"^inputs\.0\.files$", "one way to resume"),
        (r"^finetune.*/records/|^finetune.*/(config|plan)\.json$", "", "one way to resume"),
        (r"^finetune.*\.(png|html)$", "^(pixels|picture)", "words of titles and axes"),
        (r"^store_v2/report/", "^(pixels|picture|table)", "words of titles and axes"),
        (r"^dataset/store\.(dataset|parquet)", "bytes|features|metadata", "for old versions too"),
    ],
)

# This process reads checkpoints of both sides, whose commands get the same.
CONDITIONS = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    "MPLBACKEND": "Agg",
    "PYTHONHASHSEED": os.environ.get("PYTHONHASHSEED", "0"),
}
# Longer than any command takes on two cores that are busy with other work too.
_MAX_SECONDS = 900
_CALLS = Path(__file__).with_name("compare_calls.py")


class Checkout:
    """One side: the commands of a checkout, run into a folder."""

    def __init__(self, name: str, checkout: str, work: Path):
        """Names the side, where its code is, and the folder of both sides."""
        self.name, self.checkout, self.work = name, Path(checkout).resolve(), work
        self.folder, self.log = work / name, work / name / "log"
        self.environment = os.environ | {
            "PYTHONPATH": str(self.checkout),
            "JAX_COMPILATION_CACHE_DIR": str(work / "compiled"),
        }

    @property
    def is_current(self) -> bool:
        """Whether what is in the folder was made by the checkout as it is now."""
        mark = self.log / "commit.txt"
        return mark.is_file() and mark.read_text() == self._commit()

    def empty(self) -> None:
        """Removes what is in the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.log.mkdir(parents=True)

    def check(self) -> None:
        """Ends the program if the checkout would run the package of another one."""
        probe = [sys.executable, "-c", "import geneformer_jax; print(geneformer_jax.__file__)"]
        found = self._call(probe, stdout=subprocess.PIPE, text=True).stdout.strip()
        if not Path(found).is_relative_to(self.checkout):
            raise SystemExit(f"{self.checkout} would run the package of {found}")

    def run(self, again: tuple[str, ...]) -> None:
        """Runs what is not done, what is to be done again, and what needs the output of these."""
        self.check()
        (self.log / "commit.txt").write_text(self._commit())
        redone: set[str] = set()
        for name, text in COMMANDS.items():
            if name.startswith(again) or needed(text) & redone or not self._is_done(name):
                redone.add(name)
                self._run(name)

    def failed(self) -> dict[str, str]:
        """Returns the commands that failed, or were never run, with the last line each printed."""
        return {name: self._last_line(name) for name in COMMANDS if not self._is_done(name)}

    def _commit(self) -> str:
        """The checkout, its commit, and a hash of what was changed since."""
        parts = [str(self.checkout), self._git("rev-parse", "HEAD"), self._git("diff", "HEAD")]
        return f"{parts[0]}\n{parts[1]}{hashlib.sha256(parts[2].encode()).hexdigest()}\n"

    def _git(self, *words: str) -> str:
        return self._call(["git", *words], capture_output=True, text=True).stdout

    def _call(self, command: list[str], **options) -> subprocess.CompletedProcess:
        return subprocess.run(
            command, cwd=self.checkout, env=self.environment, timeout=_MAX_SECONDS, **options
        )

    def _is_done(self, name: str) -> bool:
        record = self.log / f"{name}.json"
        if not record.is_file():
            return False
        parts = json.loads(record.read_text())
        return parts["commands"] == self._commands(name) and not any(parts["status"])

    def _commands(self, name: str) -> list[list[str]]:
        lines = COMMANDS[name].strip().splitlines()
        return [self._command(shlex.split(line), name) for line in lines]

    def _command(self, words: list[str], name: str) -> list[str]:
        command = words[0]
        places = {
            "out": self.folder / name,
            "side": self.folder,
            "cells": self.work / "cells",
            "data": DATA.resolve(),
            "reference": DATA.resolve().parent / "reference",
        }
        spelled = [self._spelled(command, word).format(**places) for word in words]
        if command == "calls":
            return [sys.executable, str(self.log / "calls.py"), *spelled[1:]]
        return [sys.executable, "-m", f"geneformer_jax.{spelled[0]}", *filter(None, spelled[1:])]

    def _spelled(self, command: str, word: str) -> str:
        if self.name == "before":
            return word
        flag, equals, value = word.partition("=")
        for key in ((command, word), ("", word)):
            if key in SPELLED_AFTER:
                return SPELLED_AFTER[key]
        new = SPELLED_AFTER.get((command, flag), SPELLED_AFTER.get(("", flag), flag))
        return new and f"{new}{equals}{value}"

    def _write_calls(self) -> None:
        text = _CALLS.read_text()
        for old, new in CALLED_AFTER.items() if self.name == "after" else ():
            text = text.replace(old, new)
        (self.log / "calls.py").write_text(text)

    def _run(self, name: str) -> None:
        self._write_calls()
        shutil.rmtree(self.folder / name, ignore_errors=True)
        commands, status, began = self._commands(name), [], time.monotonic()
        with (self.log / f"{name}.txt").open("w") as file:
            for command in commands:
                status.append(self._call(command, stdout=file, stderr=file).returncode)
        parts = {"commands": commands, "status": status, "seconds": time.monotonic() - began}
        (self.log / f"{name}.json").write_text(json.dumps(parts, indent=1))
        print(f"{self.name} {name}: {parts['seconds']:.0f} s, status {status}", flush=True)

    def _last_line(self, name: str) -> str:
        printed = self.log / f"{name}.txt"
        lines = printed.read_text().strip().splitlines() if printed.is_file() else []
        return lines[-1] if lines else "nothing was printed"


def explanations() -> Explanations:
    """The table above, with the renamed flags, which provenances tell of."""
    renamed = [
        (_files_of(command), _key_pattern(old), rf"\g<1>{_key(new)}", "a flag was renamed")
        for (command, old), new in SPELLED_AFTER.items()
        if old.startswith("--") and "=" not in old and new
    ]
    return EXPLAINED._replace(items=[*EXPLAINED.items, *renamed])


def _files_of(command: str) -> str:
    """A pattern of the files that commands of a command write."""
    names = (name for name, text in COMMANDS.items() if f"\n{command}" in text)
    return rf"^({'|'.join(names)})/"


def _key(flag: str) -> str:
    """What a flag is called in provenances."""
    return flag.removeprefix("--").removeprefix("config.")


def _key_pattern(flag: str) -> str:
    """A key of a configuration stands in other files too; another flag's name is a column's too."""
    before = r"(^|\.)" if flag.startswith("--config.") else r"((?:configuration|command)\.)"
    return f"{before}{re.escape(_key(flag))}$"


def main(_) -> None:
    logging.set_verbosity(logging.WARNING)  # Orbax tells of each array that it reads
    os.environ.update(CONDITIONS)
    work = Path(WORK.value).resolve()
    if not (work / "cells" / "genes.tsv").is_file():
        make_cells(work / "cells")
    before, after = sides = [
        Checkout("before", BEFORE.value, work),
        Checkout("after", AFTER.value, work),
    ]
    if not before.is_current:
        before.empty()
    if not (ONLY.value and after.folder.is_dir()):
        after.empty()
    before.run(())
    after.run(tuple(ONLY.value))
    files = compare_sides(*(Side(each.folder, each.checkout) for each in sides), explanations())
    (work / "report.txt").write_text("".join(f"{file}\n" for file in files))
    print("\n".join(summary(files)))
    failed = {each.name: each.failed() for each in sides}
    for name, lines in failed.items():
        for command, line in lines.items():
            print(f"FAILED {name} {command}: {line}")
    bad = any(failed.values()) or any(file.unexplained for file in files)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    app.run(main)
