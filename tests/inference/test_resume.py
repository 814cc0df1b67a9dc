"""Parts of an unfinished output: whole or not at all, and of one run alone."""

import itertools
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from geneformer_jax.batches.buckets import BatchShape
from geneformer_jax.cells.tokenization.tokenizer import tokenize_cells
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.files import aside_of
from geneformer_jax.inference.cells import select_cells
from geneformer_jax.inference.resume.cell_parts import part_ranges, shareable_size
from geneformer_jax.inference.resume.folder import RECORDS, PartsFolder, parts_folder, tidy
from geneformer_jax.inference.resume.identity import identity_of, labels_sha256
from geneformer_jax.inference.resume.totals import PartTotals
from tests.helpers.toy import make_store, toy_cells, toy_model, toy_vocabulary


@pytest.fixture
def folder(tmp_path):
    return parts_folder(tmp_path / "out")


def write(parts: PartsFolder, part: int, text: str = "content") -> None:
    parts.write(part, {f"tables/{part}.txt": lambda path: path.write_text(text)})


def test_a_part_is_done_once_it_is_recorded_and_as_recorded(folder):
    parts = PartsFolder(folder)
    parts.begin({"seed": 1})
    write(parts, 0)
    write(parts, 2)
    assert parts.missing(range(4)) == [1, 3]
    (folder / "tables" / "0.txt").write_text("contenT")
    (folder / "records" / "part-000002.json").write_text("{")
    again = PartsFolder(folder)
    assert again.missing(range(4)) == [0, 1, 2, 3]
    write(again, 0)
    assert PartsFolder(folder).missing(range(2)) == [1]


def test_a_shared_file_counts_only_as_it_was_saved(folder):
    parts = PartsFolder(folder)
    parts.begin({"seed": 1}, shard=(0, 2))
    assert not parts.is_done("states.txt")
    path = parts.save("states.txt", lambda path: path.write_text("content"))
    assert PartsFolder(folder).is_done("states.txt")
    path.write_text("contenT")
    assert not PartsFolder(folder).is_done("states.txt")


def test_a_kill_before_the_record_leaves_no_part(folder):
    parts = PartsFolder(folder)
    parts.begin({})

    def dying(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        parts.write(0, {"first": lambda path: path.write_text("whole"), "second": dying})
    assert parts.missing([0]) == [0]
    assert not (folder / "second").exists()


def test_settings_stay_as_they_were_begun_and_identity_must_agree(folder):
    identity = {"seed": 1, "command": {"mode": "cell", "genes": ("a", "b")}}
    assert PartsFolder(folder).begin(identity, {"size": 50}) == {"size": 50}
    assert PartsFolder(folder).begin(identity, {"size": 70}) == {"size": 50}
    other = {"seed": 1, "command": {"mode": "cls", "genes": ("a", "b")}}
    with pytest.raises(InputError, match=r"command\.mode = 'cell', not 'cls'.*remove it") as caught:
        PartsFolder(folder).begin(other, {"size": 50})
    assert "seed" not in str(caught.value)
    with pytest.raises(InputError, match="weights = the default, not 'x'"):
        PartsFolder(folder).begin({**identity, "weights": "x"})
    with pytest.raises(InputError, match="another weights"):
        PartsFolder(folder).begin({**identity, "weights": "x" * 200})
    (folder / "plan.json").write_text('{"seed"')
    with pytest.raises(InputError, match=r"plan\.json is damaged; remove it"):
        PartsFolder(folder).begin(identity)


def test_files_of_someone_else_are_kept(folder):
    folder.mkdir()
    (folder / "precious").write_text("precious")
    with pytest.raises(InputError, match="other files"):
        PartsFolder(folder).begin({})
    assert [path.name for path in folder.iterdir()] == ["precious"]


def test_processes_begin_one_folder_and_share_its_parts(folder):
    first, second = PartsFolder(folder), PartsFolder(folder)

    def begun_meanwhile(path):
        first.begin({"seed": 1}, shard=(0, 2))
        (path / "prepared").write_text("")

    second.begin({"seed": 1}, prepare=begun_meanwhile, shard=(1, 2))
    costs = np.array([3.0, 1, 1, 1, 1])
    assert list(first.own(costs)) == [0]
    assert list(second.own(costs)) == [1, 2, 3, 4]
    for parts in (first, second):
        for part in parts.own(costs):
            write(parts, part)
    assert PartsFolder(folder).missing(range(5)) == []
    assert [path.name for path in folder.parent.iterdir()] == ["out.parts"]
    with pytest.raises(InputError, match="seed = 1, not 2"):
        PartsFolder(folder).begin({"seed": 2}, shard=(1, 2))


def test_missing_parts_are_named_with_the_shares_that_lack(folder):
    parts, costs = PartsFolder(folder), np.ones(12)
    with parts.at_work({}):
        write(parts, 0)
        with pytest.raises(InputError, match=r"11 of 12 parts .*\(1, 2, 3, 4, 5, \.\.\.\): run the "
                           "same command with neither `shard` nor `finish`"):  # fmt: skip
            parts.require_whole(parts.missing(range(12)), costs)
    with parts.at_work({}, shard=(2, 4)):
        for part in [0, 1, 2, *parts.own(costs), 11]:
            write(parts, part)
    with parts.at_work({}), pytest.raises(
        InputError, match=r"5 of 12 .*\(3, 4, 5, 9, 10\).*with `shard`=1/4, `shard`=3/4, and then"
    ):  # fmt: skip
        parts.require_whole(parts.missing(range(12)), costs)
    with parts.at_work({}, shard=(0, 1)):
        for part in (3, 4, 5, 9, 10):
            write(parts, part)
        parts.require_whole(parts.missing(range(12)), costs)


_AT_WORK = """
import sys
from pathlib import Path
from geneformer_jax.common.workdir import lock_folder
kept = lock_folder(Path(sys.argv[1]), (int(sys.argv[2]), int(sys.argv[3])))
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("other", "own", "together"),
    [((0, 1), (0, 1), False), ((0, 2), (1, 2), True), ((1, 2), (1, 2), False),
     ((0, 2), (0, 1), False), ((0, 1), (1, 2), False), ((0, 2), (1, 3), False),
     ((0, 3), (1, 2), True)],
)  # fmt: skip
def test_no_two_processes_make_the_same_parts(folder, other, own, together):
    PartsFolder(folder).begin({"run": 1})
    arguments = [sys.executable, "-c", _AT_WORK, str(folder / "lock"), *map(str, other)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"locked\n"
        if together:
            PartsFolder(folder).begin({"run": 1}, shard=own)
        else:
            with pytest.raises(InputError, match=r"another process is at work on .*wait for it"):
                PartsFolder(folder).begin({"run": 1}, shard=own)
        process.stdin.close()
    PartsFolder(folder).begin({"run": 1}, shard=own)


@pytest.mark.parametrize("unseen", ["rows/1", "means", RECORDS])
def test_what_a_machine_does_not_see_yet_is_told_and_not_left_out(folder, tmp_path, unseen):
    parts = PartsFolder(folder)
    for part in range(2):
        names = [f"rows/{part}", f"means/{part}"]
        parts.write(part, {name: lambda path: path.write_text("of a part") for name in names})
        assert sorted(parts.listed_files([part])) == sorted(names)
    assert parts.missing(range(2)) == []
    (folder / unseen).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"{unseen}.* is not seen here yet.* same command again"):
        parts.listed_files(range(2))


def test_a_finished_folder_keeps_its_tables_alone(folder, tmp_path):
    parts = PartsFolder(folder)
    parts.begin({})
    write(parts, 0)
    parts.save("states", lambda path: path.write_text("states"))
    aside_of(folder / "states", "shard0of2").write_text("of a process that was killed")
    parts.become(tmp_path / "out")
    tidy(tmp_path / "out", "states")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tables"]
    assert not folder.exists()


def test_parts_hold_as_many_cells_as_fit_and_at_least_one():
    offsets = np.cumsum([0, 4, 4, 9, 1, 1, 1, 1])
    assert part_ranges(offsets, 3) == [(0, 3), (3, 6), (6, 7)]
    assert part_ranges(offsets, 3, max_rows=8) == [(0, 2), (2, 3), (3, 6), (6, 7)]
    assert part_ranges(np.array([0]), 3) == []


def test_few_cells_are_in_parts_that_can_be_shared():
    shape = BatchShape((128, 256), (30, 10))
    cells = [10, 7_999, 8_001, 63_999, 64_001, 10**8]
    assert [shareable_size(8_000, each, shape) for each in cells] == [
        1_000, 1_000, 1_001, 8_000, 8_000, 8_000
    ]  # fmt: skip
    assert shareable_size(900, 10, shape) == 900


class Sums(NamedTuple):
    values: np.ndarray

    def plus(self, other: "Sums") -> "Sums":
        return Sums(self.values + other.values)


def tree_sum(values: np.ndarray) -> np.ndarray:
    """The sum of halves of the next power of two, written down plainly."""
    if len(values) == 1:
        return values[0]
    half = 1 << (len(values) - 1).bit_length() - 1
    return tree_sum(values[:half]) + tree_sum(values[half:])


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 8, 13])
def test_totals_are_the_same_whoever_adds_which_part(folder, parts):
    rng = np.random.default_rng(parts)
    values = rng.lognormal(0, 9, (parts, 4))
    cuts = np.sort(rng.integers(0, parts + 1, 2)).tolist()
    kept = PartsFolder(folder)
    kept.begin({})
    for start, stop in itertools.pairwise([0, *cuts, parts]):
        totals = PartTotals(PartsFolder(folder), parts, Sums, Sums.plus)
        for part in rng.permutation(np.arange(start, stop)).tolist():
            assert not totals.has(part)
            totals.put(part, Sums(values[part]), range(start, stop))
    totals = PartTotals(PartsFolder(folder), parts, Sums, Sums.plus)
    assert all(totals.has(part) for part in range(parts))
    np.testing.assert_array_equal(totals.joined().values, tree_sum(values))


def test_one_process_keeps_few_totals_and_makes_damaged_ones_again(folder):
    values = np.random.default_rng(0).lognormal(0, 9, (21, 4))
    kept = PartsFolder(folder)
    kept.begin({})
    totals = PartTotals(kept, 21, Sums, Sums.plus)
    for part in range(20):
        totals.put(part, Sums(values[part]), range(21))
        assert len(list((folder / "totals").iterdir())) == (part + 1).bit_count()
    (folder / "totals" / "04-000000.npz").write_bytes(b"?")
    totals = PartTotals(PartsFolder(folder), 21, Sums, Sums.plus)
    missing = [part for part in range(21) if not totals.has(part)]
    assert missing == [*range(16), 20]
    for part in missing:
        totals.put(part, Sums(values[part]), range(21))
    assert len(list((folder / "totals").iterdir())) == 1
    np.testing.assert_array_equal(totals.joined().values, tree_sum(values))


def test_cells_of_the_same_names_and_lengths_are_others_by_their_genes(tmp_path):
    """As counts that were corrected between a kill and the next run."""
    counts = toy_cells(12)
    corrected = counts.copy()
    corrected.X.data = corrected.X.data[::-1].copy()
    model, vocabulary = toy_model(), toy_vocabulary()
    cells = [tokenize_cells(each, vocabulary) for each in (counts, corrected, counts)]
    np.testing.assert_array_equal(cells[0].lengths, cells[1].lengths)
    names = enumerate((counts, corrected))
    cells += [make_store(tmp_path / str(n), each, vocabulary) for n, each in names]
    first, other, again, store, other_store = (
        identity_of(model, select_cells(each, max_cells=8)) for each in cells
    )
    assert first == again
    for one, two in ((first, other), (store, other_store)):
        assert [name for name in one if one[name] != two[name]] == ["tokens"]


def test_labels_are_compared_as_texts():
    same = [[1, 2, 2], [1.0, 2.0, 2.0], ["1", "2", "2"], pd.Categorical(["1", "2", "2"])]
    assert len({labels_sha256(pd.Series(each)) for each in same}) == 1
    others = [[1, 1, 2], [1, 2, None], [None, 2, 2]]
    assert len({labels_sha256(pd.Series(each)) for each in [*others, same[0]]}) == 4
