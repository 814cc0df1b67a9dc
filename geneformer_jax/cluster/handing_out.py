"""Hands shares to workers until all are made, whatever becomes of the workers."""

from collections import Counter, deque
from collections.abc import Iterable
from typing import Protocol

from geneformer_jax.cluster.messages import Answer, Share, Step
from geneformer_jax.common.errors import InputError
from geneformer_jax.common.progress import Progress

_TRIES = 3
_NAMED = 3


class Pool(Protocol):
    """Workers that do one step each at a time."""

    def has_room(self) -> bool:
        """Whether a worker is free."""
        ...

    def submit(self, step: Step, *given: Share) -> int:
        """Gives a step to a worker; returns a number for it."""
        ...

    def wait(self) -> list[tuple[int, Answer]]:
        """Waits for something to happen; returns the answers that came, which may be none."""
        ...


def ask(pool: Pool, step: Step) -> Answer:
    """Has one worker do a step by itself, again if it is lost.

    Raises:
      InputError: the input is bad; the step failed again and again.
    """
    for _ in range(_TRIES):
        answer = _wait_for(pool, pool_number=_submit(pool, step))
        if not answer.failed:
            return answer
    raise InputError(
        f"workers failed {_TRIES} times at the {step} of the work, the last time so: "
        f"{answer.failed}; what is made is kept"
    )


def make_shares(pool: Pool, shares: int, description: str) -> None:
    """Makes all shares.

    Args:
      pool: of workers.
      shares: n, of which shares 0/n to (n-1)/n are made.
      description: of the work, for the bar of progress.

    Raises:
      InputError: the input is bad; or shares failed again and again, all others being made.
    """
    todo = list(range(shares))
    while todo:
        made = _Round(pool, shares)
        with Progress(len(todo), description, "shares") as progress:
            made.make(todo, progress)
        made.require_all()
        todo = sorted(made.again)
        description = f"{description}, again"


class _Round:
    """Every share once, or until it went well.

    Attributes:
      again: shares to be made once more, now that all have got as far.
    """

    def __init__(self, pool: Pool, shares: int):
        self.again: list[int] = []
        self._pool, self._shares = pool, shares
        self._failures: Counter[int] = Counter()
        self._given_up: dict[int, str] = {}

    def make(self, todo: Iterable[int], progress: Progress) -> None:
        waiting, given = deque(todo), {}
        while waiting or given:
            while waiting and self._pool.has_room():
                share = waiting.popleft()
                given[self._pool.submit("make", (share, self._shares))] = share
            for number, answer in self._pool.wait():
                share = given.pop(number)
                if self._take(share, answer):
                    progress.advance(1)
                else:
                    waiting.append(share)

    def _take(self, share: int, answer: Answer) -> bool:
        """Takes an answer; returns False if the share is to be tried once more."""
        _require_good_input(answer)
        if answer.failed:
            self._failures[share] += 1
            if self._failures[share] < _TRIES:
                return False
            self._given_up[share] = answer.failed
        elif not answer.done:
            self.again.append(share)
        return True

    def require_all(self) -> None:
        """Raises InputError that names shares which failed again and again."""
        failed = self._given_up
        if failed:
            named = [f"{share}/{self._shares} ({failed[share]})" for share in sorted(failed)]
            more = "" if len(named) <= _NAMED else f", and {len(named) - _NAMED} more"
            raise InputError(
                f"{len(failed)} of {self._shares} shares failed {_TRIES} times each: "
                f"{', '.join(named[:_NAMED])}{more}; all others are made and kept. Run the same "
                "command again, or the first of these by itself with the command's own shard"
            )


def _submit(pool: Pool, step: Step) -> int:
    while not pool.has_room():
        pool.wait()
    return pool.submit(step)


def _wait_for(pool: Pool, pool_number: int) -> Answer:
    while True:
        for number, answer in pool.wait():
            if number == pool_number:
                _require_good_input(answer)
                return answer


def _require_good_input(answer: Answer) -> None:
    if answer.refused:
        raise InputError(answer.refused)
