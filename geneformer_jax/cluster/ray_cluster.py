"""A Ray cluster for the time of a run: one that is there, or one of our own on this machine."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.threads import cores

# Ray's own programs take a while; a cluster that is there answers in three.
_SECONDS_TO_ANSWER = 25
# The least that Ray takes: answers are short and never lie in it.
_STORE_BYTES = 80_000_000
# Longer, and the names of Ray's sockets do not fit.
_LONGEST_FOLDER = 40
_TRIES_TO_REMOVE, _SECONDS_TO_TRY_AGAIN = 20, 0.1
# Where Ray keeps the password of a user's clusters.
_PASSWORD = Path.home() / ".ray" / "auth_token"
_ALWAYS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@contextlib.contextmanager
def connected(address: str, workers: int | None) -> Iterator[ModuleType]:
    """Gives Ray, connected; begins a cluster on this machine without an address, and ends it.

    Args:
      address: of a cluster, such as "10.0.0.1:6379" or "auto"; "" for one of our own, or for that
        to which this process is connected.
      workers: to make room for on this machine; None for one a core.

    Raises:
      InputError: Ray is not installed; the cluster does not answer.
    """
    with _environment({**_ALWAYS, **_with_password(address)}):
        ray = _import_ray()
        if ray.is_initialized():
            yield ray
            return
        with _quiet(ray), _joined(ray, address) if address else _begun(ray, workers):
            yield ray


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables for this process and those that it begins, and puts them back."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _with_password(address: str) -> dict[str, str]:
    """The variable that has Ray take the user's password, as `ray start` does, but not a driver."""
    there = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if "RAY_AUTH_MODE" in os.environ or not address or not (there or _PASSWORD.exists()):
        return {}
    return {"RAY_AUTH_MODE": "token"}


def _import_ray() -> ModuleType:
    try:
        import ray
    except ModuleNotFoundError:
        raise InputError(
            'sharing work out needs Ray: pip install "geneformer_jax[ray]"; without it, start each '
            "share of the command yourself, as launch/slurm_array.sh does"
        ) from None
    return ray


@contextlib.contextmanager
def _joined(ray: ModuleType, address: str) -> Iterator[None]:
    _require_answer(address)
    try:
        _init(ray, address=address)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _no_answer(address, str(error)) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _begun(ray: ModuleType, workers: int | None) -> Iterator[None]:
    folder = tempfile.mkdtemp(prefix="ray-")
    how = {
        "num_cpus": max(cores(), workers or 1),
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
        "_temp_dir": folder if len(folder) <= _LONGEST_FOLDER else None,
    }
    try:
        with _kept_to_loopback(ray):
            _start(ray, how)
            yield
    finally:
        ray.shutdown()
        _remove(folder)


def _start(ray: ModuleType, how: Mapping[str, Any]) -> None:
    try:
        _init(ray, address="local", **how)
    except Exception as error:
        # Of no kind that would tell it: after 30 seconds, of which no option makes more.
        if isinstance(error, OSError) and error.errno:
            raise
        raise InputError(
            f"Ray does not begin on this machine ({_said(str(error))}); if that is busy, run the "
            "same command again later, or give the `address` of a cluster that is there"
        ) from error


def _remove(folder: str) -> None:
    """Removes a folder into which workers may write still, as they end a moment after Ray."""
    for _ in range(_TRIES_TO_REMOVE):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.exists(folder):
            return
        time.sleep(_SECONDS_TO_TRY_AGAIN)


@contextlib.contextmanager
def _replaced(owner: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Gives something of a module another value for a while."""
    before = getattr(owner, name, None)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _kept_to_loopback(ray: ModuleType) -> AbstractContextManager[None]:
    """Has Ray listen to this machine alone, as it does by itself on other systems than Linux.

    It has a variable for that, but reads it as it is imported, which may have been long before.
    """
    return _replaced(ray._private.ray_constants, "ENABLE_RAY_CLUSTER", False)


def _quiet(ray: ModuleType) -> AbstractContextManager[None]:
    """Keeps from the screen what Ray says of lost workers, which no level of its log does."""
    return _replaced(ray._private.worker, "print_to_stdstream", lambda *_, **__: None)


def _require_answer(address: str) -> None:
    """Asks in a process of its own, as Ray itself tries for minutes and says so again and again."""
    asking = [sys.executable, "-c", "import ray; ray.init(log_to_driver=False)"]
    how = {"env": {**os.environ, "RAY_ADDRESS": address}, "timeout": _SECONDS_TO_ANSWER}
    try:
        done = subprocess.run(asking, capture_output=True, text=True, **how)
    except subprocess.TimeoutExpired:
        raise _no_answer(address, f"nothing came in {_SECONDS_TO_ANSWER} seconds") from None
    if done.returncode:
        raise _no_answer(address, done.stderr.strip() or "there is none")


def _no_answer(address: str, why: str) -> InputError:
    return InputError(
        f"`address`={address} does not answer as a Ray cluster ({_said(why)}); give the host and "
        "port of its head, as in 10.0.0.1:6379, or leave it out to begin one on this machine"
    )


def _said(why: str) -> str:
    """The gist of what Ray says."""
    return why.strip().rpartition("\n")[2].rpartition("Error: ")[2].partition(". ")[0]


def _init(ray: ModuleType, **how: Any) -> None:
    """Connects, whole or not at all, and leaves signals as they are."""
    with _withheld(signal.SIGINT), _put_off(ray, signal.SIGTERM):
        ray.init(log_to_driver=False, logging_level="ERROR", **how)


@contextlib.contextmanager
def _put_off(ray: ModuleType, number: signal.Signals) -> Iterator[None]:
    """Puts a signal off for this process, which Ray would end with a status of its own.

    Processes that are begun here take it at once: Ray ends them so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(number, lambda number, _: came.append(number))
    try:
        with _replaced(ray._private.utils, "set_sigterm_handler", lambda _: None):
            yield
    finally:
        # Ray has one below Python's, which this takes away.
        signal.signal(number, before)
        if came:
            signal.raise_signal(number)


@contextlib.contextmanager
def _withheld(number: signal.Signals) -> Iterator[None]:
    """Puts a signal off for this process, and keeps it from all processes that are begun here.

    A terminal sends Ctrl-C to them too, and without their heads Ray's other processes stay.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
