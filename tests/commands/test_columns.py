"""Obs columns that are not there are told before JAX is loaded and before counts are read."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.inference.columns import check_columns, require_columns
from tests.helpers.commands import assert_one_line
from tests.helpers.toy import toy_cells

# Every option that names a column, beside what else its command needs.
OPTIONS = [
    ("embed", ["--color=kind,kimd"]),
    ("embed", ["--quality=kimd"]),
    ("embed", ["--quality=kind", "--batch_key=kimd"]),
    ("embed", ["--states=kimd"]),
    ("embed", ["--filter=kind:a", "--filter=kimd:a"]),
    ("attend", ["--genes=genes.txt", "--groupby=kimd"]),
    ("attend", ["--genes=genes.txt", "--filter=kimd:a"]),
    ("perturb", ["--states=kimd", "--start=a", "--goal=b"]),
    ("perturb", ["--states=kind", "--start=a", "--goal=b", "--group=kimd"]),
    ("perturb", ["--filter=kimd:a"]),
    ("predict", ["--labels_key=kimd"]),
    ("validate", ["--perturbation=kimd", "--control=a"]),
    ("validate", ["--perturbation=kind", "--control=a", "--filter=kimd:a"]),
]
_STATES = ["--states=kind", "--start=a", "--goal=b"]
# What else of perturb is wrong whatever the cells and the model are.
CONTRADICTORY = [
    (["--screen"], "--states are missing"),
    (["--screen", *_STATES, "--edit=inhibit", "--ranks=3"], "a screen knows only 'delete'"),
    (["--screen", *_STATES, "--settle=1.5"], "--settle is 1.5"),
    (["--controls=doners"], 'did you mean "donors"'),
    (["--controls=donors"], "name it by --group"),
    ([*_STATES, "--controls=self_deletion", "--positions=keep"], "needs deletions of one gene"),
    (["--statistics=agregate"], 'did you mean "aggregate"'),
]
_LABEL = "--config.task.label=kind"
CONFIGURED = [
    ("cells", "--config.task.label=kimd"),
    ("cells", _LABEL, "--config.task.group=kimd"),
    ("cells", _LABEL, "--config.task.filters=('kimd:a',)"),
    ("targets", "--config.targets.classes=kind,kimd"),
    ("targets", "--config.targets.classes=kind", "--config.targets.numbers=kimd"),
    ("targets", "--config.targets.classes=kind", "--config.targets.group=kimd"),
]
# Runs the commands in one process, and tells whether JAX was needed for what they say.
_SCRIPT = """
import contextlib, io, json, runpy, sys
from absl import flags
told = []
for name, arguments in json.loads(sys.argv[1]):
    sys.argv = [f"geneformer_jax.{name}", *arguments]
    before, error = set(flags.FLAGS), io.StringIO()
    with contextlib.redirect_stderr(error):
        try:
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        except SystemExit as end:
            told.append([end.code, error.getvalue(), "jax" in sys.modules])
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    flags.FLAGS.unparse_flags()
print(json.dumps(told))
"""


def test_bad_input_is_refused_before_jax_is_loaded_and_counts_are_read(toy_store, tmp_path):
    logged = toy_cells(20)
    logged.X = logged.X.astype(np.float32).log1p()
    logged.write_h5ad(tmp_path / "logged.h5ad")
    finetune = ["--checkpoint=none", f"--config.data.store={toy_store.folder}", "--workdir=none"]
    runs = [
        ["finetune", [f"--config=configs/finetune_{config}.py", *finetune, *given]]
        for config, *given in CONFIGURED
    ]
    runs += [
        [name, ["--checkpoint=none", f"--cells={cells}", f"--output={tmp_path}/out.h5ad", *given]]
        for name, given in OPTIONS
        for cells in (toy_store.folder, tmp_path / "logged.h5ad")
    ]
    words = ['no obs column "kimd" (did you mean "kind"?); they carry kind'] * len(runs)
    given = ["--checkpoint=none", f"--cells={toy_store.folder}", f"--output={tmp_path}/out"]
    runs += [["perturb", [*given, *arguments]] for arguments, _ in CONTRADICTORY]
    words += [each for _, each in CONTRADICTORY]
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps(runs)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told) == len(runs)
    for run, (status, error, has_jax), expected in zip(runs, told, words, strict=True):
        assert (status, has_jax) == (1, False), (run, error)
        assert_one_line(error)
        assert expected in error


def test_a_name_with_colons_in_a_filter_is_the_longest_that_is_there(tmp_path):
    adata = toy_cells(8)
    adata.obs["a:b"] = "x"
    adata.write_h5ad(tmp_path / "cells.h5ad")
    require_columns(tmp_path / "cells.h5ad", [""], ["a:b:x", "kind:a:b"])
    with pytest.raises(InputError, match='no obs column "a"'):
        require_columns(tmp_path / "cells.h5ad", [], ["a:c:x"])


def test_cells_that_are_not_there_or_damaged_are_left_to_where_they_are_read(tmp_path):
    (tmp_path / "cut.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n")
    for cells in (tmp_path / "cut.h5ad", tmp_path / "none", tmp_path):
        require_columns(cells, ["kind"], ["kind:a"])


def test_tables_are_known_by_their_columns():
    check_columns(pd.DataFrame({"kind": []}), ["kind"])
    with pytest.raises(InputError, match="they carry none"):
        check_columns(pd.DataFrame(), ["kind"])
