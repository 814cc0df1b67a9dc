"""What functions that use a model check of their arguments, before anything else."""

from geneformer_jax.common.arguments import describe, require_type
from geneformer_jax.common.errors import InputError
from geneformer_jax.model.pretrained import PretrainedModel
from geneformer_jax.model.runtime import Runtime


def check_model(model: object) -> None:
    """Raises InputError unless `model` is a loaded model."""
    require_type(
        "model", model, PretrainedModel, "load one first: model = geneformer_jax.load_model(path)"
    )


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
