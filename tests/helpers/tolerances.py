"""How near results must be, where tests and benchmarks ask the same."""

# Attention and its gradients: largest difference, relative to the largest value of the array.
ATTENTION = {"float32": 3e-6, "float16": 2e-3, "bfloat16": 1.5e-2}
# Losses of the first 20 steps beside those of float32, nats; see `Precision: 200 steps` in
# benchmarks/LOG.md.
FIRST_STEPS = {"float16": 2e-3, "bfloat16": 4e-3}
# A batch's mean loss, relative; its gradients and their moments, absolute.
LOSS, GRADIENTS = 1e-5, 2e-6
# Shifts of perturbed cells, absolute: of one batch layout, device or estimate beside another's.
SHIFTS = 1e-6
