"""What the numbers of a quickstart say, each beside what it must beat."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

MODEL, CLASSIFIER, SCREEN, EMBEDDINGS = "model", "classifier", "screen", "embeddings"
_MODE = "goal_state_shift"
_SIGNIFICANT = 0.05
# Standard errors of a difference that show one.
_ERRORS = 2


def findings(folder: Path) -> Iterator[str]:
    """Yields a sentence or two for each result that is in the folder of a quickstart."""
    if (path := folder / MODEL / "held_out.csv").exists():
        yield _hidden_genes(pd.read_csv(path, index_col="method"))
    measured = json.loads((folder / f"{EMBEDDINGS}.provenance.json").read_text())["counts"]
    for column, scores in measured.get("label_accuracy", {}).items():
        yield _neighbours(column, pd.DataFrame(scores).T)
    if (path := folder / CLASSIFIER / "results.csv").exists():
        yield _classifier(pd.read_csv(path, index_col="method"))
    if (path := folder / SCREEN / "statistics" / f"{_MODE}.csv").exists():
        states = json.loads((folder / SCREEN / "provenance.json").read_text())["counts"]["states"]
        yield _screen(pd.read_csv(path), states["start"], states["goal"])


def _hidden_genes(scores: pd.DataFrame) -> str:
    model, guesses = scores.loc["model"], scores.drop("model")
    best = guesses.loc[guesses["loss"].idxmin()]
    learned = model["loss"] < best["loss"]
    return (
        f"Hidden genes, in cells that the model was not trained on: it names {model.accuracy:.1%} "
        f"of them at a loss of {model.loss:.2f} nats; guessing by {best.name}, without a model, "
        f"{best.accuracy:.1%} at {best.loss:.2f}. "
        + ("It has learned which genes go together." if learned else "It has NOT learned yet.")
    )


def _neighbours(column: str, scores: pd.DataFrame) -> str:
    ours, others = scores.iloc[0], scores.iloc[1:]
    text = f'"{column}" by the nearest neighbours of each cell: {ours.accuracy:.1%} right'
    for name, other in others.iterrows():
        text += f"; by {name} {other.accuracy:.1%}"
    text += f"; always the commonest {ours.majority:.1%}. "
    if ours.accuracy <= ours.majority:
        return f"{text}The embeddings do NOT show these labels."
    ahead = ours.accuracy - others["accuracy"].max() if len(others) else math.inf
    room = _ERRORS * math.sqrt(2 * ours.accuracy * (1 - ours.accuracy) / ours.cells)
    if ahead < -room:
        return text + (
            "The embeddings LOSE: some minutes on some cells make no good embedding. To tell these "
            "labels apart, take the components of the counts."
        )
    text += "The embeddings hold these labels"
    if abs(ahead) <= room:
        text += f", as well as the components: differences below {room:.1%} say nothing"
    return f"{text}. The model learned a cell and a part of it to be alike, and masked genes."


def _classifier(scores: pd.DataFrame) -> str:
    model, others = scores.iloc[0], scores["accuracy"].iloc[1:]
    text = (
        f"The same labels after fine-tuning, in cells held out: {model.accuracy:.1%} right "
        f"({model.accuracy_low:.1%} to {model.accuracy_high:.1%}); "
        + "; ".join(f"{name} {accuracy:.1%}" for name, accuracy in others.items())
        + ". "
    )
    if others.max() > model.accuracy_high:
        return f"{text}It LOSES to {others.idxmax()}."
    if others.max() < model.accuracy_low:
        return f"{text}It beats them all."
    return f"{text}It is level with {others.idxmax()}."


def _screen(table: pd.DataFrame, start: str, goal: str) -> str:
    rates = table["Matched_FDR"].dropna()
    found = int((rates < _SIGNIFICANT).sum())
    text = (
        f'Genes whose deletion moves "{start}" towards "{goal}" otherwise than deleting genes of '
        f"like rank does: {found:,} of {len(rates):,}. "
    )
    if found:
        return f"{text}These are worth a look at what else must be beaten, on the page."
    return f"{text}Nothing can be said of single genes."
