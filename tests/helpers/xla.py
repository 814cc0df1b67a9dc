"""How XLA compiles in tests."""

# Tests compile much and compute little: without optimisation, and with the older emitters of fused
# operations, compiling takes a fifth of the time.
CPU_COMPILING = "--xla_cpu_use_fusion_emitters=false"
QUICK_COMPILING = f"--xla_backend_optimization_level=0 {CPU_COMPILING}"
