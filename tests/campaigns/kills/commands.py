"""The commands that are killed: what they are given, and when they put their output together."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_GENES = ",".join(f"ENSG{number:011d}" for number in (0, 3, 5, 8, 13))
_STATES = ("--states=kind", "--start=a", "--goal=b")
_TINY = (
    "--config.model.layers=1",
    "--config.model.width=16",
    "--config.model.heads=2",
    "--config.model.feed_forward=16",
    "--config.model.positions=256",
    "--config.mesh.data=1",
    "--config.data.max_buckets=1",
    "--config.optimizer.warmup_steps=2",
    "--config.checkpoint.every_steps=2",
    "--config.epochs=2",
    "--config.data.cells_per_batch=16",
    "--config.task.label=kind",
    "--config.task.baselines=False",
)
PROJECT = Path(__file__).resolve().parents[3]


@dataclass(frozen=True)
class Command:
    """A command that writes.

    Attributes:
      name: of the command, as in `python -m geneformer_jax.NAME`.
      arguments: {inputs} and {output} stand for the folders of what is given and of the output.
      joins: functions, as module:name, in which it puts its output together.
      prepare: makes the parts of its work small, in the process that runs it.
      done: part of the line with which it refuses an output that is whole; "" if it takes it.
    """

    name: str
    arguments: Sequence[str]
    joins: Sequence[str] = ()
    prepare: Callable[[pytest.MonkeyPatch], None] = field(default=lambda patch: None)
    done: str = ""

    def arguments_in(self, inputs: Path, output: Path) -> list[str]:
        """The arguments, with paths in them."""
        return [each.format(inputs=inputs, output=output) for each in self.arguments]


def write_counts(folder: Path, files: str, cells: int) -> None:
    """Writes made-up counts of so many cells into each file, and their vocabulary."""
    from tests.helpers.toy import toy_cells, toy_vocabulary

    (folder / "counts").mkdir(parents=True)
    for seed, name in enumerate(files):
        adata = toy_cells(cells, seed)
        adata.obs_names = [f"{name}{number}" for number in range(adata.n_obs)]
        adata.write_h5ad(folder / "counts" / f"{name}.h5ad")
    toy_vocabulary().save(folder / "vocabulary")


def write_inputs(folder: Path) -> None:
    """Writes made-up cells, and a model, small enough to be read in no time."""
    # JAX is for the processes that run commands.
    from tests.helpers.labelled_tasks import save_base
    from tests.helpers.pretrain_runs import CONFIG
    from tests.helpers.toy import make_store, toy_cells, toy_vocabulary

    write_counts(folder, files="abc", cells=40)
    make_store(folder / "store", toy_cells(96), toy_vocabulary(), obs=("kind",))
    save_base(folder / "model")
    genes = [f"ENSG{number:011d}" for number in range(0, 60, 3)]
    (folder / "genes.txt").write_text("\n".join(genes))
    (folder / "config.py").write_text(CONFIG)


def _embed_in_small_parts(patch: pytest.MonkeyPatch) -> None:
    from geneformer_jax.embedding import parts

    patch.setitem(parts.CELLS_PER_PART, "cpu", 24)


def _attend_in_small_parts(patch: pytest.MonkeyPatch) -> None:
    from geneformer_jax.attention_analysis import run

    patch.setitem(run.CELLS_PER_PART, "cpu", 10)


def _perturb_in_small_parts(patch: pytest.MonkeyPatch) -> None:
    from geneformer_jax.perturbation import run
    from geneformer_jax.perturbation.engine.screening import settling

    small = functools.partial(run.PerturbationRun, tokens_per_part=1_000)
    patch.setattr(run, "PerturbationRun", small)
    patch.setattr(settling, "SAMPLE", 40)


_MODEL_AND_CELLS = ("--checkpoint={inputs}/model", "--cells={inputs}/store")
_PERTURB = (*_MODEL_AND_CELLS, "--output={output}/shifts", "--max_cells=5")
_OF_PERTURB = (
    "geneformer_jax.perturbation.run:PerturbationRun.finish",
    "geneformer_jax.perturbation.statistics.report:perturbation_statistics",
)

COMMANDS = {
    "build_vocabulary": Command(
        "build_vocabulary",
        ("--counts={inputs}/counts", "--output={output}/vocabulary"),
        ("geneformer_jax.cells.tokenization.vocabulary_shards:VocabularyRun.finish",),
    ),
    "tokenize": Command(
        "tokenize",
        ("--counts={inputs}/counts", "--vocabulary={inputs}/vocabulary", "--obs=kind",
         "--output={output}/store"),
        ("geneformer_jax.cells.store.building.run:TokenizeRun.finish",),
    ),
    "pretrain": Command(
        "pretrain",
        ("--config={inputs}/config.py", "--config.data.store={inputs}/store",
         "--config.evaluation.held_out_cells=16", "--workdir={output}/run"),
        ("geneformer_jax.reporting.command_reports:write_pretraining_report",),
    ),
    "finetune": Command(
        "finetune",
        (f"--config={PROJECT}/configs/finetune_cells.py", *_TINY,
         "--config.data.store={inputs}/store", "--workdir={output}/run"),
        ("geneformer_jax.finetuning.classification.protocol:write_results",),
    ),
    "embed": Command(
        "embed",
        (*_MODEL_AND_CELLS, "--output={output}/embeddings.h5ad", "--color=kind", "--states=kind"),
        ("geneformer_jax.embedding.run:EmbeddingRun.finish",),
        _embed_in_small_parts,
    ),
    "perturb": Command(
        "perturb",
        (*_PERTURB, f"--genes={_GENES}", "--gene_shifts=means"),
        _OF_PERTURB,
        _perturb_in_small_parts,
    ),
    "screen": Command(
        "perturb",
        (*_PERTURB, *_STATES, "--genes=all", "--screen", "--settle=0.1", "--split_points=4"),
        _OF_PERTURB,
        _perturb_in_small_parts,
    ),
    "attend": Command(
        "attend",
        (*_MODEL_AND_CELLS, "--output={output}/attention", "--genes={inputs}/genes.txt",
         "--max_cells=40"),
        ("geneformer_jax.attention_analysis.run:AttentionRun.finish",),
        _attend_in_small_parts,
    ),
    "convert": Command(
        "convert",
        ("--source={inputs}/model", "--target={output}/converted"),
        done="nothing is overwritten",
    ),
}  # fmt: skip
