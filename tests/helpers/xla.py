"""How XLA compiles in tests."""

from importlib.metadata import version

# Tests compile much and compute little: without optimisation, and with the older emitters of fused
# operations where jaxlib still has them, compiling takes a fifth of the time. XLA ends the process
# at a flag that it does not know.
QUICK_COMPILING = "--xla_backend_optimization_level=0"
if version("jaxlib").startswith("0.10."):
    QUICK_COMPILING += " --xla_cpu_use_fusion_emitters=false"
