"""Memory that is freed is kept for what comes next, where a command asks for it."""

import subprocess
import sys

import pytest

FAULTS = """
import resource
from geneformer_jax.common.threads import keep_freed_memory
{first}
bytearray(100 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(100 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's default is what is changed")
def test_pages_of_freed_arrays_are_not_asked_for_again():
    def faults(first, **environment):
        command = [sys.executable, "-c", FAULTS.format(first=first)]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        return int(done.stdout)

    pages = (100 << 20) // 4096
    assert faults("") > pages // 2
    assert faults("keep_freed_memory()") < pages // 100
    # What the user chose stays.
    assert faults("keep_freed_memory()", MALLOC_ARENA_MAX="2") > pages // 2
