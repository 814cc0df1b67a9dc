"""Tables whose notes of pandas, or bytes, are damaged, as the commands read them."""

import gzip

import pandas as pd
import pyarrow.parquet as pq
import pytest

from geneformer_jax.common.errors import InputError
from geneformer_jax.common.tables import read_id_table, read_table
from geneformer_jax.embedding.output import read_output
from geneformer_jax.finetuning.classification.predictions import read_predictions
from geneformer_jax.perturbation.validation.hits.lists import compare_lists

READERS = {
    "is no Parquet table": read_id_table,
    "is damaged": lambda path: read_output(path, ["layer"]),
    "fine-tune again": read_predictions,
    "is no table that can be read": lambda path: compare_lists(
        path, pd.DataFrame({"gene": ["A"]}), "", 1
    ),
}


@pytest.mark.parametrize("notes", ["[]", "{}", "7", "{"])
@pytest.mark.parametrize(("message", "read"), READERS.items())
def test_damaged_notes_are_reported_in_one_line(tmp_path, message, read, notes):
    path = tmp_path / "table.parquet"
    pd.DataFrame({"gene": ["A", "B"], "layer": [[1.0], [2.0]]}).to_parquet(path)
    pq.write_table(pq.read_table(path).replace_schema_metadata({"pandas": notes}), path)
    with pytest.raises(InputError, match=message) as raised:
        read(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["labels.csv", "labels.csv.gz"])
def test_nul_bytes_end_no_label(name, tmp_path):
    content = b"cell,type\na,T cell\nb,B\0cell\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(InputError, match=f"{name} is no table that can be read .*NUL bytes"):
        read_table(path)
