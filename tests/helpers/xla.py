"""How XLA compiles in tests."""

# Tests compile much and compute little: without optimisation, and with the older emitters of fused
# operations, compiling takes a fifth of the time.
QUICK_COMPILING = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
