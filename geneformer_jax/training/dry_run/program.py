"""What a compiled step takes: memory on each device, and the collectives it holds.

XLA offers no interface to a compiled program's instructions, so they are read from its text.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

_KINDS = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^ +(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|called_computations)=\{?%?([\w.\-]+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\]")


class Memory(NamedTuple):
    """Bytes that a program takes on each device.

    Attributes:
      arguments: state and batch.
      temporaries: activations, gradients and buffers, at their fullest.
      peak: everything at its fullest.
      host: what it keeps in the host's memory for each device.
    """

    arguments: int
    temporaries: int
    peak: int
    host: int


class Collectives(NamedTuple):
    """The collectives of one kind that a program runs.

    Attributes:
      count: how often one is run, each round of a loop counted.
      payload: bytes that go into them or come out of them, whichever is more, on each device.
    """

    count: int
    payload: int


class _Instruction(NamedTuple):
    name: str
    shape: str
    operation: str
    rest: str


def memory_of(program: jax.stages.Compiled) -> Memory:
    """Returns the memory that a compiled program takes on each device."""
    analysis = program.memory_analysis()
    return Memory(
        arguments=analysis.argument_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        peak=analysis.peak_memory_in_bytes,
        host=analysis.host_argument_size_in_bytes + analysis.host_temp_size_in_bytes,
    )


def collectives_in(text: str) -> dict[str, Collectives]:
    """Returns the collectives of a compiled program by kind, such as "all-reduce".

    Args:
      text: the optimised program, as `jax.stages.Compiled.as_text()` gives it.
    """
    computations, entry = _computations(text)
    found: dict[Any, tuple[str, int, int]] = {}
    for computation, runs in _calls(computations, entry, 1):
        shapes = {each.name: each.shape for each in computations[computation]}
        for each in computations[computation]:
            kind = each.operation.removesuffix("-start")
            if kind not in _KINDS:
                continue
            # A TPU spreads one collective over several fusions, all of one channel.
            channel = _CHANNEL.search(each.rest)
            key = (kind, channel[1]) if channel else (computation, each.name)
            before = found.get(key, (kind, 0, 0))
            found[key] = (kind, max(runs, before[1]), max(_payload(each, shapes), before[2]))
    totals: dict[str, Collectives] = {}
    for kind, runs, payload in found.values():
        count, total = totals.get(kind, (0, 0))
        totals[kind] = Collectives(count + runs, total + runs * payload)
    return dict(sorted(totals.items()))


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Splits a program into the instructions of each of its functions; also names the first run."""
    computations: dict[str, list[_Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            current = start[2]
            computations[current] = []
            entry = current if start[1] else entry
        elif current and (found := _INSTRUCTION.match(line)):
            computations[current].append(_Instruction(*found.groups()))
    return computations, entry


def _calls(
    computations: dict[str, list[_Instruction]], name: str, runs: int
) -> Iterator[tuple[str, int]]:
    """Yields (function, how often it is run) for a function and all that it calls."""
    yield name, runs
    for each in computations[name]:
        rounds = _rounds(each, computations) if each.operation == "while" else 1
        called = _CALLED.findall(each.rest)
        for branches in _BRANCHES.findall(each.rest):
            called += [branch.strip(" %") for branch in branches.split(",")]
        for other in called:
            if other in computations:
                yield from _calls(computations, other, runs * rounds)


def _rounds(loop: _Instruction, computations: dict[str, list[_Instruction]]) -> int:
    """How often a loop goes round: the known trip count, or what its condition compares with."""
    if known := _TRIPS.search(loop.rest):
        return int(known[1])
    condition = _CONDITION.search(loop.rest)
    instructions = computations.get(condition[1], []) if condition else []
    limits = [each.rest for each in instructions if each.operation == "constant"]
    return max((int(number[0]) for text in limits if (number := re.match(r"\d+", text))), default=1)


def _payload(each: _Instruction, shapes: dict[str, str]) -> int:
    operands = re.findall(r"%([\w.\-]+)", each.rest.partition(")")[0])
    taken = sum(_bytes(shapes.get(operand, "")) for operand in operands)
    return max(taken, _bytes(each.shape) - (taken if _holds_operands(each) else 0))


def _holds_operands(each: _Instruction) -> bool:
    """Whether the result of an asynchronous start lists its operands before the results."""
    is_pair = each.shape.startswith(("((", "(")) and each.operation.endswith("-start")
    return is_pair and (each.operation != "all-reduce-start" or each.shape.startswith("(("))


def _bytes(shape: str) -> int:
    """Bytes of all arrays in a shape such as "(f32[8,128]{1,0}, bf16[4])"."""
    total = 0
    for dtype, sizes in _ARRAY.findall(shape):
        count = 1
        for size in sizes.replace("<=", "").split(","):
            count *= int(size or 1)
        bits = re.search(r"\d+", dtype)
        total += count * (int(bits[0]) if bits else 8) // 8
    return total
