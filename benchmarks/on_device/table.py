"""Results as Markdown, for benchmarks/LOG.md."""

from collections.abc import Iterator
from typing import Any

from on_device.stages import Row

_HIDDEN = ("name", "unit", "median", "slowest_fastest", "repeats", "mfu", "aim", "aim_mfu")


def table(found: Row) -> list[str]:
    """Returns lines: the devices, what was measured, what was checked, what is missing and why."""
    devices = ", ".join(f"{each['device']} ({name})" for name, each in found["devices"].items())
    packages = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    rows = [(stage["name"], row) for stage in found["stages"] for row in stage["rows"]]
    seconds = ", ".join(f"{each['name']} {each['seconds']}" for each in found["stages"])
    return [
        f"{found['began']}: {devices or 'no device was found'}; {packages}; {found['sizes']} "
        f"sizes. {found['peak']} Took {found['seconds']} s of {found['budget_s']}: {seconds}.",
        "",
        *_measured(rows),
        "",
        *_checked(rows),
        "",
        *_missing(found["stages"]),
    ]


def _measured(rows: list[tuple[str, Row]]) -> Iterator[str]:
    yield "| stage | what | median | slowest to fastest (repeats) | MFU | aim | how |"
    yield "|---|---|---|---|---|---|---|"
    for stage, row in rows:
        if "median" not in row:
            continue
        slowest, fastest = row["slowest_fastest"]
        aim = row.get("aim") or (f"MFU {row['aim_mfu']}" if "aim_mfu" in row else "")
        how = "; ".join(
            f"{name} {_shown(each)}" for name, each in row.items() if name not in _HIDDEN
        )
        yield (
            f"| {stage} | {row['name']} | {_shown(row['median'])} {row['unit']} | "
            f"{_shown(slowest)} to {_shown(fastest)} ({row['repeats']}) | "
            f"{_shown(row.get('mfu'))} | {_shown(aim)} | {how} |"
        )


def _checked(rows: list[tuple[str, Row]]) -> Iterator[str]:
    yield "| check | verdict | largest error of its bound |"
    yield "|---|---|---|"
    for _, row in rows:
        if "failed" in row:
            yield f"| {row['name']} | **WRONG** | {row['failed']} |"
        elif "passed" in row:
            errors = (f"{part} {row['errors'][part]} of {b}" for part, b in row["bounds"].items())
            verdict = "right" if row["passed"] else "**WRONG**"
            yield f"| {row['name']} | {verdict} | {', '.join(errors)} |"
        elif "median" not in row and "left_out" not in row:
            facts = (f"{name} {_shown(each)}" for name, each in row.items() if name != "name")
            yield f"| {row['name']} | | {', '.join(facts)} |"


def _missing(stages: list[Row]) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for stage in stages:
        for row in stage["rows"]:
            if "left_out" in row:
                reasons.setdefault(row["left_out"], []).append(row["name"])
    yield "Not made:" if reasons or any(each["status"] != "done" for each in stages) else ""
    for stage in stages:
        if stage["status"] != "done":
            yield f"- {stage['name']}: {stage['status']}, {stage.get('said', 'ended from outside')}"
    for reason, names in reasons.items():
        yield f"- {'; '.join(names)}: {reason}"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1_000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
