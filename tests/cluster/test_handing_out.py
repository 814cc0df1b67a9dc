"""Shares handed out to workers that answer, ask for another round, or are lost."""

from collections.abc import Callable

import pytest

from geneformer_jax.cluster.handing_out import ask, make_shares
from geneformer_jax.cluster.messages import Answer
from geneformer_jax.common.errors import InputError


class MadeUpPool:
    """Two workers that answer what a function of (share, how often it was asked) says.

    The last that was given a share is the first to answer.
    """

    def __init__(self, answer: Callable[[int, int], Answer]):
        self._answer = answer
        self._given: list[tuple[int, int]] = []
        self._calls = 0
        self.asked: list[int] = []
        self.most = 0

    def has_room(self) -> bool:
        return len(self._given) < 2

    def submit(self, step: str, *given: tuple[int, int]) -> int:
        assert self.has_room()
        self._calls += 1
        self._given.append((self._calls, given[0][0] if given else -1))
        self.most = max(self.most, len(self._given))
        return self._calls

    def wait(self) -> list[tuple[int, Answer]]:
        number, share = self._given.pop()
        self.asked.append(share)
        return [(number, self._answer(share, self.asked.count(share)))]


def test_every_share_is_made_once_with_all_workers_at_work():
    pool = MadeUpPool(lambda share, time: Answer())
    make_shares(pool, 7, "tests")
    assert sorted(pool.asked) == list(range(7))
    assert pool.most == 2


def test_a_lost_share_is_made_again():
    pool = MadeUpPool(lambda share, time: Answer(failed="lost" if time < 1 + share % 3 else ""))
    make_shares(pool, 7, "tests")
    assert {share: pool.asked.count(share) for share in range(7)} == {
        share: 1 + share % 3 for share in range(7)
    }


def test_shares_that_fail_again_and_again_are_named_when_all_others_are_made():
    pool = MadeUpPool(lambda share, time: Answer(failed=f"no {share}" if share in (1, 5) else ""))
    with pytest.raises(InputError, match=r"2 of 7 shares.* 1/7 \(no 1\), 5/7 \(no 5\); all"):
        make_shares(pool, 7, "tests")
    assert sorted(pool.asked) == sorted([*range(7), 1, 1, 5, 5])


def test_of_many_failed_shares_the_first_are_named():
    pool = MadeUpPool(lambda share, time: Answer(failed="no"))
    with pytest.raises(InputError, match=r"2/7 \(no\), and 4 more"):
        make_shares(pool, 7, "tests")


def test_shares_that_wait_for_all_others_come_again_when_these_have_got_as_far():
    pool = MadeUpPool(lambda share, time: Answer(done=time == 2 or share == 3))
    make_shares(pool, 5, "tests")
    assert sorted(pool.asked[:5]) == list(range(5))
    assert sorted(pool.asked[5:]) == [0, 1, 2, 4]


def test_another_round_waits_for_no_share_that_cannot_be_made():
    pool = MadeUpPool(lambda share, time: Answer(done=False, failed="no" if share == 3 else ""))
    with pytest.raises(InputError, match="1 of 5 shares"):
        make_shares(pool, 5, "tests")
    assert sorted(pool.asked) == [0, 1, 2, 3, 3, 3, 4]


def test_bad_input_ends_the_work_at_once():
    pool = MadeUpPool(lambda share, time: Answer(refused="the file is none"))
    with pytest.raises(InputError, match=r"^the file is none$"):
        make_shares(pool, 100, "tests")
    assert len(pool.asked) == 1


def test_one_step_is_tried_again_a_few_times():
    third_time = MadeUpPool(lambda _, time: Answer(failed="" if time > 2 else "no"))
    assert ask(third_time, "begin") == Answer()
    with pytest.raises(InputError, match=r"3 times at the finish of the work.*: no; "):
        ask(MadeUpPool(lambda *_: Answer(failed="no")), "finish")
