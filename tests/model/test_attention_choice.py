"""What "auto" resolves to, and what is refused before anything compiles."""

import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.model.attention.dispatch import choose_attention

USUAL = {
    "platform": "gpu",
    "compute_capability": 8.0,
    "compute_dtype": "bfloat16",
    "head_size": 64,
    "dropout_rate": 0.0,
    "packed": False,
    "positions": 2048,
}


@pytest.mark.parametrize(
    ("change", "chosen", "because"),
    [
        ({}, "cudnn", "fused kernel"),
        ({"platform": "cuda", "compute_dtype": "float16"}, "cudnn", "fused kernel"),
        ({"compute_capability": 7.0}, "chunked", "compute capability 8.0 or more, not 7.0"),
        ({"compute_capability": 7.0, "positions": 512}, "xla", "at most 512 tokens"),
        ({"compute_dtype": "float32"}, "chunked", "bfloat16 or float16, not float32"),
        ({"dropout_rate": 0.02}, "chunked", "attention dropout 0, not 0.02"),
        ({"packed": True}, "chunked", "rows of one cell each"),
        ({"head_size": 136}, "chunked", "8, 16, ... 128, not 136"),
        ({"head_size": 136, "compute_capability": 9.0}, "cudnn", "fused kernel"),
        ({"head_size": 12, "positions": 100}, "xla", "not 12"),
        ({"platform": "tpu"}, "splash", "fused kernel"),
        ({"platform": "tpu", "packed": True}, "splash", "fused kernel"),
        ({"platform": "tpu", "dropout_rate": 0.02}, "chunked", "attention dropout 0"),
        ({"platform": "tpu", "compute_dtype": "float16"}, "chunked", "not float16"),
        ({"platform": "cpu"}, "chunked", "more than 256"),
        ({"platform": "cpu", "positions": 256}, "xla", "at most 256"),
        ({"platform": "cpu", "inference": True}, "by_head", "inference on a CPU"),
        ({"inference": True}, "cudnn", "fused kernel"),
    ],
)
def test_auto(change, chosen, because):
    choice = choose_attention("auto", **(USUAL | change))
    assert choice.implementation == chosen
    assert because in choice.reason


@pytest.mark.parametrize("requested", ["xla", "chunked", "by_head", "cudnn"])
def test_what_can_run_is_taken_as_asked(requested):
    assert choose_attention(requested, **USUAL).implementation == requested


@pytest.mark.parametrize(
    ("requested", "change", "message"),
    [
        ("cudnn", {"platform": "cpu"}, "needs an NVIDIA GPU, not cpu"),
        ("cudnn", {"compute_capability": 7.0}, r"8\.0 or more, not 7\.0"),
        ("cudnn", {"compute_dtype": "float32"}, "not float32"),
        ("cudnn", {"dropout_rate": 0.02}, r"not 0\.02"),
        ("cudnn", {"packed": True}, "packed"),
        ("cudnn", {"head_size": 20}, "not 20"),
        ("splash", {}, "needs a TPU, not gpu"),
        ("splash", {"platform": "tpu", "dropout_rate": 0.1}, r"not 0\.1"),
        ("splash", {"platform": "tpu", "compute_dtype": "float16"}, "not float16"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line_with_a_remedy(requested, change, message):
    with pytest.raises(InputError, match=message) as error:
        choose_attention(requested, **(USUAL | change))
    assert str(error.value).startswith(f'attention "{requested}" needs ')
    assert str(error.value).endswith(': change that, or use attention "auto"')


def test_a_gpu_that_does_not_tell_its_capability_takes_no_cudnn():
    """The local device is asked, and here it is a CPU."""
    choice = choose_attention("auto", **(USUAL | {"compute_capability": None}))
    assert choice.implementation == "chunked"


def test_an_unknown_name_is_refused():
    with pytest.raises(InputError, match=r'"cudn" is unknown: use one of auto, xla, .*"cudnn"'):
        choose_attention("cudn", **USUAL)
