"""How XLA compiles in tests."""

from importlib.metadata import version

# Only CPUs know this flag, and only where jaxlib still has the older emitters of fused operations.
# XLA ends the process at a flag that it does not know.
CPU_COMPILING = (
    "--xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""
)
# Tests compile much and compute little: without optimisation and with the older emitters, compiling
# takes a fifth of the time.
QUICK_COMPILING = f"--xla_backend_optimization_level=0 {CPU_COMPILING}".strip()
