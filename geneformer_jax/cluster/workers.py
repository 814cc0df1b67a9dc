"""Ray's workers as pools: tasks for commands of the CPU, actors for those that keep a model."""

import itertools
import os
import secrets
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from geneformer_jax.cluster.messages import Answer, Command, Share, Step
from geneformer_jax.cluster.worker import perform
from geneformer_jax.common.errors import InputError

_FAILED_STARTS = 3
_CACHE = "JAX_COMPILATION_CACHE_DIR"


class WorkerSize(NamedTuple):
    """What each worker has.

    Attributes:
      count: of workers.
      cores: of each.
      gpus: of each, 0 or 1.
    """

    count: int
    cores: int
    gpus: int


def size_workers(ray: ModuleType, count: int | None, keep_model: bool) -> WorkerSize:
    """Divides a cluster among workers.

    Args:
      ray: connected.
      count: of workers; None for one a GPU or, without GPUs, one a machine, if they keep a model,
        and one a core if they do not.
      keep_model: whether they do.

    Raises:
      InputError: the cluster has no machines with cores at present, and `count` is None.
    """
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    machines = [each for each in machines if each.get("CPU", 0) >= 1]
    with_gpus = [each for each in machines if keep_model and each.get("GPU", 0) >= 1]
    machines = with_gpus or machines
    if not (machines or count):
        raise InputError("the cluster has no cores yet; say with `workers` how many workers to use")
    key = "GPU" if with_gpus else "CPU"
    count = count or _default_count(machines, key, keep_model)
    on_each = -(-count // max(len(machines), 1))
    cores = min((int(each["CPU"]) // on_each for each in machines), default=1)
    return WorkerSize(count, max(cores, 1), int(bool(with_gpus)))


def _default_count(machines: list[dict[str, float]], key: str, keep_model: bool) -> int:
    if keep_model and key == "CPU":
        return len(machines)
    return int(sum(each[key] for each in machines))


def compiled_programs() -> Path:
    """The folder in which workers keep compiled programs for each other."""
    return Path(os.environ.get(_CACHE) or Path.home() / ".cache" / "geneformer_jax" / "compiled")


class _Pool:
    """Steps under way; see `handing_out.Pool`."""

    def __init__(self, ray: ModuleType, command: Command, size: WorkerSize):
        self._ray, self._command, self._size = ray, command, size
        self._numbers = itertools.count()
        environment = {
            _CACHE: str(compiled_programs()),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            # A process is of one run: another command's flags would stand in its way.
            "GENEFORMER_JAX_RUN": secrets.token_hex(8),
        }
        self._options = {
            "num_cpus": size.cores,
            "num_gpus": size.gpus,
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": environment},
        }

    def _first_done(self, references: list[Any]) -> Any:
        (done,), _ = self._ray.wait(references, num_returns=1)
        return done

    def _answer(self, reference: Any) -> Answer:
        """Returns what a worker says, or what became of it."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(reference)
        except errors.OutOfMemoryError:
            return Answer(failed="its worker was ended as memory ran out")
        except (errors.WorkerCrashedError, errors.ActorDiedError, errors.NodeDiedError):
            return Answer(failed="its worker was killed, or crashed")
        except errors.RayError as error:
            return Answer(failed=_last_line(error))


class TaskPool(_Pool):
    """Tasks: Ray finds each a worker process, which keeps what it has prepared."""

    def __init__(self, ray: ModuleType, command: Command, size: WorkerSize):
        super().__init__(ray, command, size)
        self._task = ray.remote(perform).options(max_retries=0, **self._options)
        self._running: dict[Any, int] = {}
        # So that all processes are there when there are shares; the one that begins is the last.
        for _ in range(size.count - 1):
            self._task.remote(command, "start")

    def has_room(self) -> bool:
        """Whether fewer tasks are under way than there are workers."""
        return len(self._running) < self._size.count

    def submit(self, step: Step, *given: Share) -> int:
        """Begins a task; returns a number for it."""
        number = next(self._numbers)
        self._running[self._task.remote(self._command, step, *given)] = number
        return number

    def wait(self) -> list[tuple[int, Answer]]:
        """Returns the number and answer of the task that is done first."""
        done = self._first_done(list(self._running))
        return [(self._running.pop(done), self._answer(done))]

    def close(self) -> None:
        """Ends what is under way, and the processes, which Ray would keep for a while."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        # A process ends once it has done as many tasks of a kind as that may take.
        last = self._ray.remote(max_calls=1, **self._options)(_leave)
        for _ in range(self._size.count):
            last.remote()


class ActorPool(_Pool):
    """Actors: a process for each worker, with its own device; lost ones are replaced."""

    def __init__(self, ray: ModuleType, command: Command, size: WorkerSize):
        super().__init__(ray, command, size)
        self._new = ray.remote(Keeper).options(max_restarts=0, max_task_retries=0, **self._options)
        self._starting: dict[Any, Any] = {}
        self._free: list[Any] = []
        self._running: dict[Any, tuple[int, Any]] = {}
        self._failed_starts = 0
        for _ in range(size.count):
            self._start()

    def has_room(self) -> bool:
        """Whether an actor has started and is free."""
        return bool(self._free)

    def submit(self, step: Step, *given: Share) -> int:
        """Gives a step to a free actor; returns a number for it."""
        number, actor = next(self._numbers), self._free.pop()
        self._running[actor.perform.remote(self._command, step, *given)] = number, actor
        return number

    def wait(self) -> list[tuple[int, Answer]]:
        """Returns the number and answer of the step that is done first; none if an actor starts."""
        done = self._first_done([*self._starting, *self._running])
        answer = self._answer(done)
        if done in self._starting:
            self._take_start(self._starting.pop(done), answer)
            return []
        number, actor = self._running.pop(done)
        if answer.failed:
            # A device may be left unusable, too.
            self._ray.kill(actor)
            self._start()
        else:
            self._free.append(actor)
        return [(number, answer)]

    def close(self) -> None:
        """Ends all actors, whatever they do."""
        at_work = (actor for _, actor in self._running.values())
        for actor in (*self._starting.values(), *self._free, *at_work):
            self._ray.kill(actor)

    def _start(self) -> None:
        actor = self._new.remote()
        self._starting[actor.perform.remote(self._command, "start")] = actor

    def _take_start(self, actor: Any, answer: Answer) -> None:
        if not answer.failed:
            self._free.append(actor)
            return
        self._failed_starts += 1
        if self._failed_starts > _FAILED_STARTS * self._size.count:
            raise InputError(f"workers do not start, the last one so: {answer.failed}")
        self._start()


class Keeper:
    """An actor that keeps model and compiled programs."""

    def __init__(self):
        import ray

        # JAX must not see the others'. Ray has done so, but where a batch system is in its way.
        if devices := ray.get_gpu_ids():
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))

    def perform(self, *given: Any) -> Answer:
        """Does a step; see `worker.perform`."""
        return perform(*given)


def _leave() -> None:
    """The last task of a process."""


def _last_line(error: Exception) -> str:
    return [line.strip() for line in str(error).splitlines() if line.strip()][-1]
