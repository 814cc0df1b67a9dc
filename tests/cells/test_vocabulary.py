"""The gene vocabulary: what it checks, how ids map, and that storing it keeps all of it."""

import json
import pickle
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from geneformer_jax.cells.tokenization.gene_ids import strip_version
from geneformer_jax.cells.tokenization.vocabulary import (
    V1_SPECIAL_TOKENS,
    V2_SPECIAL_TOKENS,
    GeneVocabulary,
)
from geneformer_jax.common.errors import InputError
from geneformer_jax.interop.original_dictionaries import read_original_vocabulary

IDS = ["ENSG00000000003", "ENSG00000000005", "ENSG00000000419"]


def small(**changes):
    content = {
        "gene_ids": np.array(IDS),
        "symbols": np.array(["TSPAN6", "", "DPM1"]),
        "medians": np.array([2.5, 0.1, 1 / 3]),
        "special_tokens": V1_SPECIAL_TOKENS,
        "id_mapping": {"T245": IDS[0], "ENSG00000999999": IDS[2], "A-923A4.1": IDS[1]},
        "species": "human",
    }
    return GeneVocabulary(**(content | changes))


def test_tokens_follow_the_special_tokens():
    v1, v2 = small(), small(special_tokens=V2_SPECIAL_TOKENS)
    assert v1.tokens_of(IDS).tolist() == [2, 3, 4] and v2.tokens_of(IDS).tolist() == [4, 5, 6]
    assert (v1.size, v1.pad_id, v1.mask_id, v1.cls_id, v1.eos_id) == (5, 0, 1, None, None)
    assert (v2.size, v2.cls_id, v2.eos_id, v2.first_gene_token) == (7, 2, 3, 4)
    assert v2.gene_id_of(6) == IDS[2] and v2.gene_id_of(2) == "<cls>"
    assert v1.names_of([1, 2, 3]).tolist() == ["<mask>", "TSPAN6", IDS[1]]


@pytest.mark.parametrize(
    ("gene_id", "symbols", "gene"),
    [
        (IDS[0] + ".12", "mapping", 0),
        (" " + IDS[0] + " ", "mapping", 0),
        (IDS[0].lower(), "mapping", 0),
        ("ENSG00000999999", "mapping", 2),
        ("ENSG00000999999.3", "never", 2),
        ("t245", "mapping", 0),
        ("T245", "never", None),
        ("a-923a4.1", "mapping", 1),
        ("dpm1", "mapping", None),
        ("dpm1", "names", 2),
        ("DPM1", "never", None),
        ("", "names", None),
        ("<pad>", "names", None),
        ("ENSG00000000001", "names", None),
    ],
)
def test_ids_are_mapped(gene_id, symbols, gene):
    expected = -1 if gene is None else 2 + gene
    assert small().tokens_of([gene_id], symbols=symbols).tolist() == [expected]


def test_a_symbol_of_two_genes_is_no_name():
    vocabulary = small(symbols=np.array(["DUP", "dup", "DPM1"]))
    assert vocabulary.tokens_of(["DUP", "DPM1"], symbols="names").tolist() == [-1, 4]


def test_symbols_may_be_the_gene_ids():
    ids = ["CD3E", "RP11-34P13.7", "Xkr4"]
    vocabulary = small(gene_ids=np.array(ids), symbols=np.array(ids), id_mapping={})
    for policy in ("mapping", "names", "never"):
        assert vocabulary.tokens_of(ids, symbols=policy).tolist() == [2, 3, 4]
    assert vocabulary.tokens_of(["XKR4", "RP11-34P13"]).tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("gene_id", "plain"),
    [
        ("ENSG00000136574.12", "ENSG00000136574"),
        ("ENSMUSG00000051951.6", "ENSMUSG00000051951"),
        ("ENSG00000182378.15_PAR_Y", "ENSG00000182378_PAR_Y"),
        ("ENSGR0000182378", "ENSGR0000182378"),
        ("RP11-34P13.7", "RP11-34P13.7"),
        ("ENSA", "ENSA"),
    ],
)
def test_versions(gene_id, plain):
    assert strip_version(gene_id) == plain


def token_by_the_rules(vocabulary, gene_id, policy):
    """The rules of `tokens_of`, one id and one table after another."""
    tokens = {gene: 2 + n for n, gene in enumerate(vocabulary.gene_ids.tolist())}
    aliases = {other: tokens[gene] for other, gene in vocabulary.id_mapping.items()}
    names = {}
    for gene, name in zip(vocabulary.gene_ids.tolist(), vocabulary.symbols.tolist(), strict=True):
        names.setdefault(name.upper(), []).append(tokens[gene])
    names = {name: found[0] for name, found in names.items() if name and len(found) == 1}
    plain = strip_version(gene_id)
    ensembl = re.fullmatch(r"ens[a-z]*\d{6,}(_par_y)?", plain.lower(), re.ASCII)
    for name in (gene_id.strip(), plain):
        upper = name.upper()
        order = [aliases.get(upper), tokens.get(upper)] if ensembl else []
        order.append(tokens.get(name))
        order += [] if policy == "never" else [aliases.get(upper)]
        order += [names.get(upper)] if policy == "names" else []
        for token in order:
            if token is not None:
                return token
    return -1


@pytest.mark.parametrize("policy", ["mapping", "names", "never"])
def test_many_ids_at_once_follow_the_rules(policy):
    """Ids of all kinds, with versions, in lower case, with blanks, retired, unknown or foreign."""
    rng = np.random.default_rng(0)
    genes = [f"ENSG{n:011d}" for n in range(0, 400, 2)]
    genes = sorted([*genes, "ENSG00000000011_PAR_Y", "CD3E", "Xkr4", "RP11-34P13.7", "STRASSE"])
    mapping = {f"ENSG{n:011d}": genes[n] for n in range(1, 60, 4)}
    mapping |= {f"ENSG{n:011d}.3": genes[2 * n] for n in range(30, 40)}
    mapping |= {genes[7]: genes[8], "T245": genes[3], "A-923A4.1": genes[4], "MIR1.2": genes[5]}
    symbols = [rng.choice(["", f"Sym{n // 2}", f"S{n}.1"]) for n in range(len(genes))]
    vocabulary = small(
        gene_ids=np.array(genes), symbols=np.array(symbols), medians=np.ones(len(genes)),
        id_mapping=mapping,
    )  # fmt: skip
    ids = [*genes, *mapping, *symbols, "ENSG99999999999", "ENSMUSG00000000002", "stra\u00dfe", ""]
    ids += [f"{each}.{n % 9}" for n, each in enumerate(ids)]
    ids += [each.lower() for each in ids] + [f" {each}\t" for each in ids] + ["ENSG00000000002.x"]
    expected = [token_by_the_rules(vocabulary, each, policy) for each in ids]
    assert vocabulary.tokens_of(ids, symbols=policy).tolist() == expected
    assert 0.2 < np.mean(np.array(expected) < 0) < 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gene_ids": np.array(IDS[::-1])}, "must ascend"),
        ({"gene_ids": np.array([IDS[0], IDS[0], IDS[1]])}, "must ascend"),
        ({"medians": np.array([1.0, 0.0, 1.0])}, "must be positive"),
        ({"medians": np.array([1.0, np.nan, 1.0])}, "must be positive"),
        ({"symbols": np.array(["a"])}, "1 symbols"),
        ({"special_tokens": ("<pad>",)}, "not supported"),
        ({"gene_ids": np.array([]), "symbols": np.array([]), "medians": np.array([])}, "without"),
    ],
)
def test_wrong_content_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        small(**changes)


def test_more_tokens_than_16_bits_hold_are_refused():
    ids = np.array([f"G{n:06d}" for n in range(65_536)])
    with pytest.raises(InputError, match="16 bits"):
        GeneVocabulary(ids, ids, np.ones(len(ids)))
    full = GeneVocabulary(ids[:-2], ids[:-2], np.ones(len(ids) - 2))
    assert full.tokens_of([ids[-3]]).tolist() == [65_535]


@pytest.mark.parametrize("token", [-1, 5])
def test_unknown_tokens_are_refused(token):
    with pytest.raises(InputError, match=f"token {token} "):
        small().gene_id_of(token)
    with pytest.raises(InputError, match=f"token {token} "):
        small().names_of([2, token])


def ways(tmp_path):
    def folder(vocabulary):
        vocabulary.save(tmp_path / "vocabulary")
        return GeneVocabulary.load(tmp_path / "vocabulary")

    def text(vocabulary):
        return GeneVocabulary.from_json(vocabulary.to_json())

    return [folder, text, lambda vocabulary: pickle.loads(pickle.dumps(vocabulary))]


def test_every_way_of_storing_keeps_everything(tmp_path):
    original = small(special_tokens=V2_SPECIAL_TOKENS, species="mouse")
    for way in ways(tmp_path):
        again = way(original)
        for name in ("gene_ids", "symbols", "medians"):
            np.testing.assert_array_equal(getattr(again, name), getattr(original, name))
        assert again.special_tokens == original.special_tokens and again.species == "mouse"
        assert dict(again.id_mapping) == dict(original.id_mapping)
        assert again.hash == original.hash


def test_an_empty_mapping_survives(tmp_path):
    small(id_mapping={}).save(tmp_path / "vocabulary")
    assert dict(GeneVocabulary.load(tmp_path / "vocabulary").id_mapping) == {}


def test_other_symbols_are_refused_where_their_hash_is_there(tmp_path):
    folder, path = tmp_path / "vocabulary", tmp_path / "vocabulary" / "genes.parquet"
    small().save(folder)
    genes = pq.read_table(path)
    pq.write_table(genes.set_column(1, "symbol", pa.array([7, 8, 9])), path)
    with pytest.raises(InputError, match=f"symbols of the vocabulary in {folder} were changed"):
        GeneVocabulary.load(folder)
    description = json.loads((folder / "vocabulary.json").read_text())
    del description["symbols_hash"]
    (folder / "vocabulary.json").write_text(json.dumps(description))
    assert GeneVocabulary.load(folder).symbols.tolist() == ["7", "8", "9"]


def test_tables_may_come_from_other_writers(tmp_path):
    original = small(id_mapping={})
    original.save(tmp_path / "v")
    untyped = pa.table({"other_id": pa.nulls(0), "gene_id": pa.nulls(0)})
    pq.write_table(untyped, tmp_path / "v" / "id_mapping.parquet")
    genes = {"gene_id": original.gene_ids, "symbol": original.symbols}
    genes = {name: pa.array(texts.tolist(), pa.large_string()) for name, texts in genes.items()}
    table = pa.table({**genes, "median": original.medians})
    pq.write_table(table, tmp_path / "v" / "genes.parquet")
    loaded = GeneVocabulary.load(tmp_path / "v")
    ids = [*IDS, "GATA4"]
    np.testing.assert_array_equal(loaded.tokens_of(ids), original.tokens_of(ids))


def test_the_hash_changes_with_all_that_decides_tokens():
    changes = [
        {},
        {"medians": np.array([2.5, 0.1, np.nextafter(1 / 3, 1)])},
        {"gene_ids": np.array([*IDS[:2], "ENSG00000000420"])},
        {"special_tokens": V2_SPECIAL_TOKENS},
        {"id_mapping": {}},
        {"species": "mouse"},
    ]
    assert len({small(**change).hash for change in changes}) == len(changes)
    assert small(symbols=np.array(["", "", ""])).hash == small().hash


def test_changed_files_are_refused(tmp_path):
    folder = tmp_path / "vocabulary"
    small().save(folder)
    genes = pd.read_parquet(folder / "genes.parquet")
    genes.loc[0, "median"] = 2.6
    genes.to_parquet(folder / "genes.parquet", index=False)
    with pytest.raises(InputError, match="was changed after it was written"):
        GeneVocabulary.load(folder)
    (folder / "genes.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(InputError, match="cannot be read"):
        GeneVocabulary.load(folder)
    (folder / "genes.parquet").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        GeneVocabulary.load(folder)
    with pytest.raises(InputError, match="is no vocabulary"):
        GeneVocabulary.load(tmp_path)


@pytest.mark.parametrize(
    ("written", "damaged"),
    [("by us", b"TSP\xc1N6"), ("by us", b"TSPAM6"), ("without checksums", b"TSP\xc1N6")],
)
def test_a_damaged_symbol_is_told_in_one_line(tmp_path, written, damaged):
    folder, path = tmp_path / "vocabulary", tmp_path / "vocabulary" / "genes.parquet"
    small().save(folder)
    if written == "without checksums":
        pq.write_table(pq.read_table(path), path, use_dictionary=False)
    content = path.read_bytes()
    assert b"TSPAN6" in content
    path.write_bytes(content.replace(b"TSPAN6", damaged))
    with pytest.raises(InputError, match=f"^the vocabulary in {folder} cannot be read .*anew$"):
        GeneVocabulary.load(folder)


def test_changed_text_is_refused():
    content = json.loads(small().to_json())
    content["medians"][0] = 9.0
    with pytest.raises(InputError, match="was changed"):
        GeneVocabulary.from_json(json.dumps(content))
    for text in ("", "[]", "{}", "nonsense", json.dumps({**content, "gene_ids": 3})):
        with pytest.raises(InputError, match="is no vocabulary"):
            GeneVocabulary.from_json(text)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="already holds other files"):
        small().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.reference_data
@pytest.mark.parametrize(
    ("folder", "size", "gata4", "median", "titin"),
    [("v1_gc30M", 25_426, 7261, 5.221529, 9837), ("v2_gc104M", 20_275, 7196, 3.211414, 9740)],
)
def test_the_originals_vocabularies(data_dir, tmp_path, folder, size, gata4, median, titin):
    vocabulary = read_original_vocabulary(data_dir / "dictionaries" / folder)
    assert vocabulary.size == size
    tokens = vocabulary.tokens_of(["ENSG00000136574", "ENSG00000155657", "ENSG00000251562"])
    assert tokens.tolist() == [gata4, titin, -1]
    found = vocabulary.medians[gata4 - vocabulary.first_gene_token]
    assert found == pytest.approx(median, abs=1e-6)
    vocabulary.save(tmp_path / "vocabulary")
    assert GeneVocabulary.load(tmp_path / "vocabulary").hash == vocabulary.hash
    assert GeneVocabulary.from_json(vocabulary.to_json()).hash == vocabulary.hash
