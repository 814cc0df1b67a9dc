"""Running a command on a cluster."""

import contextlib
import os
from collections.abc import Sequence

from geneformer_jax.cluster import handing_out
from geneformer_jax.cluster.messages import Command
from geneformer_jax.cluster.names import sole_command
from geneformer_jax.cluster.ray_cluster import connected
from geneformer_jax.cluster.workers import (
    ActorPool,
    TaskPool,
    WorkerSize,
    compiled_programs,
    size_workers,
)
from geneformer_jax.common.arguments import require_type, require_whole
from geneformer_jax.common.command_line import outputs_in
from geneformer_jax.common.errors import InputError, did_you_mean
from geneformer_jax.common.log import logger

_OF_CPU = ("tokenize", "build_vocabulary")
_OF_A_MODEL = ("embed", "perturb", "attend", "predict")


def run(
    command: Sequence[str], *, shares: int, workers: int | None = None, address: str = ""
) -> None:
    """Runs a command in many processes, with the output of one.

    Workers make the shares and join them; only the command line and numbers go to them, so all
    must see the same files under the same paths. A worker that is lost is replaced and its share
    made again. Given again after any interruption, the same command goes on.

    Args:
      command: name and flags, as typed: `["tokenize", "--counts=corpus", "--output=store", ...]`.
      shares: into how many the work is cut; 20 to 50 for each worker keep all of them busy. The
        output does not depend on it.
      workers: processes that work at the same time. By default, of commands that use a model, one
        for each GPU or, without GPUs, for each machine; of others one for each core.
      address: of a Ray cluster, such as "10.0.0.1:6379", or "auto". By default a cluster is begun
        on this machine, and ended, unless this process is connected to one.

    Raises:
      InputError: the command refuses its input; another such command is at work on the output;
        Ray is missing or does not answer; shares failed again and again, all others being made.
    """
    name, arguments = _split(command)
    require_whole("shares", shares, 1)
    if workers is not None:
        require_whole("workers", workers, 1)
    output = outputs_in(arguments).get("output", "")
    with sole_command(output), connected(address, workers) as ray:
        keep_model = name in _OF_A_MODEL
        size = size_workers(ray, workers, keep_model)
        logger.info(_describe(ray.__version__, address, size, keep_model))
        pool_of = ActorPool if keep_model else TaskPool
        told = Command(name, arguments, os.getcwd(), size.cores)
        with contextlib.closing(pool_of(ray, told, size)) as pool:
            _run(pool, name, shares)


def _run(pool: handing_out.Pool, name: str, shares: int) -> None:
    begun = handing_out.ask(pool, "begin")
    _log(begun.lines)
    if begun.done:
        logger.info("the output is complete and was written by this command: nothing to do")
        return
    handing_out.make_shares(pool, shares, name)
    _log(handing_out.ask(pool, "finish").lines)


def _split(command: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    require_type("command", command, (list, tuple), "give a list of its name and flags")
    known = (*_OF_CPU, *_OF_A_MODEL)
    name = command[0] if command else ""
    if name not in known:
        raise InputError(
            f'"{name}" is no command that can be shared out{did_you_mean(name, known)}; give one '
            f"of {', '.join(known)}, and its flags behind it"
        )
    return name, tuple(command[1:])


def _describe(version: str, address: str, size: WorkerSize, keep_model: bool) -> str:
    where = f"at {address}" if address else "on this machine"
    each = f"{size.cores} core{'s' if size.cores > 1 else ''}" + " and a GPU" * size.gpus
    line = f"Ray {version} {where}: {size.count} worker{'s' if size.count > 1 else ''} of {each}"
    return line + (f"; compiled programs: {compiled_programs()}" if keep_model else "")


def _log(lines: Sequence[str]) -> None:
    for line in lines:
        logger.info(line)
