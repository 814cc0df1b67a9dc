"""What JAX is told where the compiler for TPUs is installed and no TPU is there.

Imported by all modules that look for devices, before they do.
"""

import importlib.util
import os

import jax  # noqa: F401 (it sets what is asked for below)

# Where libtpu is installed (it also compiles for TPUs that are not there) JAX asks it for devices,
# and without any it writes errors on what it could not find out about the machine. As JAX is
# imported it notes whether it saw a chip.
if importlib.util.find_spec("libtpu") and os.environ.get("TPU_SKIP_MDS_QUERY") == "1":
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
