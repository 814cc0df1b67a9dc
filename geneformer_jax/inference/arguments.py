"""What functions that use a model check of their arguments, before anything else."""

from geneformer_jax.common.arguments import describe, require_type, require_whole
from geneformer_jax.common.errors import InputError
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime


def check_model(model: object) -> None:
    """Raises InputError unless `model` is a loaded model."""
    require_type(
        "model", model, PretrainedModel, "load one first: model = geneformer_jax.load_model(path)"
    )


def check_draw(max_cells: object, seed: object) -> None:
    """Raises InputError unless a number of cells, or None, and a seed are given."""
    if max_cells is not None:
        require_whole("max_cells", max_cells, least=1)
    require_whole("seed", seed)


def check_runtime(runtime: object, devices: object = None) -> None:
    """Raises InputError unless these say how to compute, or are None."""
    if runtime is not None:
        require_type(
            "runtime", runtime, Runtime, 'give a geneformer_jax.Runtime(...), such as '
            'Runtime(attention="xla"), or leave it out',
        )  # fmt: skip
    if devices is not None and (isinstance(devices, str) or not hasattr(devices, "__iter__")):
        raise InputError(
            f"`devices` is {describe(devices)}; give a list, such as jax.devices()[:1]"
        )
