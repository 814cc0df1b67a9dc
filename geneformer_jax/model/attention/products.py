"""Products of arrays, and how exactly they are made on any device."""

import functools

import jax
import jax.numpy as jnp

# Of products of float32 arrays. By default NVIDIA GPUs since the A100 round their operands to 10
# bits of mantissa (TF32) and TPUs to 7 (bfloat16), and shifts are differences in the fourth digit.
FLOAT32_PRODUCTS = jax.lax.Precision.HIGHEST


def precision_of_products(dtype: jax.typing.DTypeLike) -> jax.lax.Precision | None:
    """Returns how exactly arrays of a type are multiplied: those of half precision as they are."""
    return FLOAT32_PRODUCTS if jnp.dtype(dtype) == jnp.float32 else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def einsum_f32(spec: str, a, b):
    """Returns the einsum of two arrays of one dtype, accumulated in float32.

    Its gradient rounds the cotangent to the dtype of the operands first. Left to itself, JAX
    multiplies a float32 cotangent with a half-precision operand, and that runs as float32.
    """
    return _einsum(spec, a, b, preferred_element_type=jnp.float32)


def _einsum(spec: str, a, b, **options):
    return jnp.einsum(spec, a, b, precision=precision_of_products(a.dtype), **options)


def _einsum_f32_forward(spec, a, b):
    return einsum_f32(spec, a, b), (a, b)


def product(spec: str, a, b):
    """Returns the einsum of two arrays of one dtype in that dtype, accumulated in float32."""
    return _summed_in_float32(functools.partial(_einsum, spec))(a, b)


def _einsum_f32_backward(spec, operands, cotangent):
    a, b = operands
    return _transposed(spec)(cotangent.astype(a.dtype), a, b)


def _transposed(spec: str):
    """Returns the function of a cotangent and two operands that returns their gradients."""

    def gradients(cotangent, a, b):
        return jax.vjp(functools.partial(_einsum, spec), a, b)[1](cotangent)

    return _summed_in_float32(gradients)


def _summed_in_float32(function):
    """Returns a function of arrays of one dtype whose products are summed in float32.

    As GPUs and TPUs do. JAX's CPU from 0.11.2 on sums products of bfloat16 along first axes in
    bfloat16, whatever algorithm is asked for, and is a thirtieth off; so operands are widened.
    """

    def widened(*arrays):
        results = function(*(each.astype(jnp.float32) for each in arrays))
        return jax.tree.map(lambda each: each.astype(arrays[0].dtype), results)

    def summed(*arrays):
        if arrays[0].dtype == jnp.float32:
            return function(*arrays)
        return jax.lax.platform_dependent(*arrays, cpu=widened, default=function)

    return summed


einsum_f32.defvjp(_einsum_f32_forward, _einsum_f32_backward)
