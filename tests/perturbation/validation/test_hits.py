"""Statistics beside lists of hits: planted hits are found, others are not, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

import geneformer_jax as gf
from tests.helpers.commands import assert_one_line, run_command
from tests.helpers.pages import assert_files_are_linked, read_page

GENES = 200


def statistic(seed: int = 0) -> pd.DataFrame:
    """Shifts towards a goal that follow the number of cells."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(10, 200, GENES)
    shifts = rng.normal(0, 1, GENES) + cells / 100
    return pd.DataFrame(
        {
            "Gene_name": [f"GENE{n}" for n in range(GENES)],
            "Ensembl_ID": [f"ENSG{n:011d}" for n in range(GENES)],
            "Shift_to_goal_end": shifts,
            "N_Detections": cells,
            "Sig": (np.abs(shifts) > 1.8).astype(int),
        }
    )


def hits_of(table: pd.DataFrame, number: int, by: str) -> pd.DataFrame:
    chosen = table[by].rank(ascending=False) <= number
    return pd.DataFrame({"gene": table["Gene_name"], "hit": np.where(chosen, "yes", "no")})


def test_planted_hits_are_found_and_every_number_is_plain_arithmetic():
    table = statistic()
    # A tenth of the hits is wrong.
    hits = hits_of(table, 30, "Shift_to_goal_end")
    hits.loc[hits.index[:3], "hit"] = "yes"
    found = gf.validate_hits(table, hits)
    assert found.verdict[0].startswith("Hits are found more often")
    rows = found.metrics.set_index("protocol")
    is_hit = (hits["hit"] == "yes").to_numpy()
    called = ((table["Sig"] == 1) & (table["Shift_to_goal_end"] > 0)).to_numpy()
    own = rows["prediction"]
    assert own["ppv"] == pytest.approx(is_hit[called].mean())
    assert own["npv"] == pytest.approx((~is_hit[~called]).mean())
    assert own["sensitivity"] == pytest.approx(called[is_hit].mean())
    assert own["specificity"] == pytest.approx((~called[~is_hit]).mean())
    assert own["roc_auc"] == pytest.approx(roc_auc_score(is_hit, table["Shift_to_goal_end"]))
    expected = average_precision_score(is_hit, table["Shift_to_goal_end"])
    assert own["pr_auc"] == pytest.approx(expected)
    assert rows.loc["roc_auc", "cells"] == pytest.approx(
        roc_auc_score(is_hit, table["N_Detections"])
    )
    assert (rows["pval"] < 0.02).all() and (rows["drf"] > 0.1).all()


def test_equal_scores_are_called_together():
    table = statistic()
    table["Shift_to_goal_end"] = table["Shift_to_goal_end"].round()
    hits = hits_of(statistic(), 30, "Shift_to_goal_end")
    own = gf.validate_hits(table, hits).metrics.set_index("protocol")["prediction"]
    given = hits["hit"] == "yes", table["Shift_to_goal_end"]
    assert own["pr_auc"] == pytest.approx(average_precision_score(*given))
    assert own["roc_auc"] == pytest.approx(roc_auc_score(*given))


def test_hits_that_are_a_matter_of_rank_are_not():
    """The statistic finds them, and so does anything else that follows the number of cells."""
    table = statistic()
    found = gf.validate_hits(table, hits_of(table, 40, "N_Detections"))
    rows = found.metrics.set_index("protocol")
    assert rows.loc["roc_auc", "prediction"] > 0.6
    assert rows.loc["roc_auc", "like_rank"] > 0.6 and rows.loc["roc_auc", "pval"] > 0.05
    assert found.verdict[0].startswith("No more hits are found")


def test_hits_come_as_a_list_with_scores_or_with_some_genes_missing(tmp_path):
    table = statistic()
    (tmp_path / "hits.txt").write_text("\n".join(["gene", "gene3", "ENSG00000000007.2", "OTHER"]))
    listed = gf.validate_hits(table, tmp_path / "hits.txt")
    assert listed.genes.loc[listed.genes["hit"], "symbol"].tolist() == ["GENE3", "GENE7"]
    assert len(listed.genes) == GENES
    assert listed.left_out == {"in the screen, but not perturbed": 1}
    scores = pd.DataFrame({"symbol": table["Gene_name"], "score": table["Shift_to_goal_end"] * 2})
    scored = gf.validate_hits(table, scores.iloc[:100])
    rows = scored.metrics.set_index("protocol")
    assert len(scored.genes) == 100 and scored.genes["hit"].sum() == 10
    assert rows.loc["spearman", "prediction"] == pytest.approx(1)
    assert scored.left_out == {"perturbed, but not in the screen": 100}


def test_without_a_call_only_the_order_is_judged():
    table = statistic().assign(Sig=0)
    found = gf.validate_hits(table, hits_of(table, 30, "Shift_to_goal_end"))
    rows = found.metrics.set_index("protocol")
    assert np.isnan(rows.loc["ppv", "prediction"]) and np.isnan(rows.loc["specificity", "drf"])
    assert rows.loc["roc_auc", "prediction"] == 1
    assert "no gene is called" in found.verdict[-1] and "ppv" not in found.verdict[0]


def test_another_column_may_order_the_genes_and_rare_ones_are_left_out():
    table = statistic().assign(Like_rank_shift=lambda t: -t["Shift_to_goal_end"])
    hits = hits_of(table, 30, "Shift_to_goal_end")
    found = gf.validate_hits(table, hits, score="Like_rank_shift", min_cells=50)
    assert found.metrics.set_index("protocol").loc["roc_auc", "prediction"] < 0.1
    rare = int((table["N_Detections"] < 50).sum())
    assert found.left_out["edited in fewer than 50 cells"] == rare
    with pytest.raises(gf.InputError, match='did you mean "Like_rank_shift"'):
        gf.validate_hits(table, hits, score="like_rank_shift")


def test_sets_and_tables_of_other_statistics():
    table = statistic().rename(columns={"N_Detections": "N_Detections_test"})
    table["Test_vs_null_avg_shift"] = -table.pop("Shift_to_goal_end")
    pair = table.iloc[[0]].assign(Ensembl_ID="ENSG00000000000+ENSG00000000001")
    hits = pd.DataFrame({"gene": ["GENE1", "GENE2"]})
    found = gf.validate_hits(pd.concat([table, pair]), hits)
    assert found.statistic == "vs_null" and found.left_out == {"sets of several genes": 1}
    assert (found.genes["score"] >= 0).all() and len(found.genes) == GENES


@pytest.mark.parametrize(
    ("hits", "words"),
    [
        (pd.DataFrame({"gene": ["A", "B"]}), "none of them is a hit"),
        (pd.DataFrame({"gene": ["GENE1"], "hit": ["yes"]}), "all of them are hits"),
        (pd.DataFrame({"gene": ["GENE1", "GENE2"], "hit": ["yes", "perhaps"]}), "'perhaps'"),
        (pd.DataFrame({"gene": ["GENE1"] * 2, "hit": ["yes", "no"]}), "such as GENE1; list each"),
        (pd.DataFrame({"gene": ["GENE1"] * 2, "score": [0.1, 0.2]}), "list each gene once"),
        (pd.DataFrame({"gene": ["GENE1", "GENE2"], "score": [0.3, 0.3]}), "score 0.3 for every"),
        (pd.DataFrame({"gene": [], "hit": []}), "names no gene"),
        (pd.DataFrame({"locus": ["GENE1"], "hit": ["yes"]}), "no column with genes"),
        (pd.DataFrame({"gene": ["GENE1"], "colour": ["red"]}), "no column with hits"),
        (3, "`hits` is 3"),
        ("nowhere.csv", "does not exist"),
    ],
)
def test_lists_that_say_nothing_are_refused(hits, words):
    with pytest.raises(gf.InputError) as told:
        gf.validate_hits(statistic(), hits)
    assert words in str(told.value) and "\n" not in str(told.value)


def test_statistics_that_call_no_gene_are_refused(tmp_path):
    hits = pd.DataFrame({"gene": ["GENE1"]})
    with pytest.raises(gf.InputError, match="mixture_model call genes"):
        gf.validate_hits(statistic().drop(columns="Sig"), hits)
    with pytest.raises(gf.InputError, match=r"goal_state_shift\.parquet does not exist"):
        gf.validate_hits(tmp_path, hits)


def test_the_command_writes_a_folder_and_says_what_does_not_go_together(
    tmp_path, monkeypatch, capsys
):
    table = statistic()
    folder = tmp_path / "shifts" / "statistics"
    folder.mkdir(parents=True)
    table.to_parquet(folder / "goal_state_shift.parquet")
    hits_of(table, 30, "Shift_to_goal_end").to_csv(tmp_path / "hits.csv", index=False)
    arguments = [f"--statistics={tmp_path / 'shifts'}", f"--hits={tmp_path / 'hits.csv'}",
                 f"--output={tmp_path / 'out'}"]  # fmt: skip
    status, output, error = run_command("validate", arguments, monkeypatch, capsys)
    assert status == 0, error
    assert "Hits are found more often" in output
    page = read_page(tmp_path / "out" / "report.html")
    files = ["curves.pdf", "curves.png", "genes.csv", "metrics.csv"]
    assert_files_are_linked(page, tmp_path / "out", files)
    again = run_command("validate", arguments, monkeypatch, capsys)
    assert again[0] == 0 and "nothing to do" in again[1]
    for wrong, words in (
        ([*arguments, "--cells=x.h5ad"], "--cells has no meaning"),
        (arguments[1:], "--statistics must be given"),
        ([arguments[0], arguments[2]], "name it by --hits"),
        ([*arguments, "--seed=1"], "was not written by this command"),
    ):
        status, _, error = run_command("validate", wrong, monkeypatch, capsys)
        assert status == 1
        assert_one_line(error)
        assert words in error
