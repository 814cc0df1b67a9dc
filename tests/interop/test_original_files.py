import os
import pickle
import random
import struct

import numpy as np
import pytest

from geneformer_jax.attention_analysis.gene_lists import read_gene_lists
from geneformer_jax.cells.tokenization.vocabulary import GeneVocabulary
from geneformer_jax.common.errors import InputError
from geneformer_jax.interop import gene_classes, original_dictionaries
from geneformer_jax.interop.run import Conversion
from tests.helpers.original_files import FILES, GENES, small_dictionaries, write_dictionaries


class Calls:
    """Pickles to a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def test_small_dictionaries_become_a_vocabulary(tmp_path):
    folder = write_dictionaries(tmp_path / "gc", small_dictionaries())
    vocabulary = original_dictionaries.read_original_vocabulary(folder)
    assert vocabulary.gene_ids.tolist() == list(GENES)
    assert vocabulary.symbols.tolist() == ["TSPAN6", "TNMD", ""]
    assert vocabulary.medians.tolist() == list(GENES.values())
    assert vocabulary.special_tokens == ("<pad>", "<mask>")
    assert dict(vocabulary.id_mapping) == {"TSPAN6": "ENSG00000000003"}
    assert vocabulary.species == "human"


def test_the_september_2022_files_without_mapping_and_names_are_enough(tmp_path):
    folder = tmp_path / "gc"
    folder.mkdir()
    content = small_dictionaries()
    (folder / "token_dictionary.pkl").write_bytes(pickle.dumps(content["token"]))
    (folder / "gene_median_dictionary.pkl").write_bytes(pickle.dumps(content["median"]))
    vocabulary = original_dictionaries.read_original_vocabulary(folder, species="mouse")
    assert vocabulary.symbols.tolist() == ["", "", ""]
    assert dict(vocabulary.id_mapping) == {}
    assert vocabulary.species == "mouse"


def test_of_several_names_the_alphabetically_first_is_the_symbol(tmp_path):
    content = small_dictionaries()
    gene = "ENSG00000000003"
    content["names"] = {
        "ZETA": gene,
        "ALPHA": gene,
        "MU": gene,
        "ENSG00000000005": "ENSG00000000005",
    }
    folder = write_dictionaries(tmp_path / "gc", content)
    symbols = original_dictionaries.read_original_vocabulary(folder).symbols.tolist()
    assert symbols == ["ALPHA", "", ""]


@pytest.mark.reference_data
@pytest.mark.parametrize(
    ("version", "size", "specials", "mapped", "medians"),
    [
        ("v1_gc30M", 25_426, 2, 0, (7261, 5.221529, 9837, 8.593234)),
        ("v2_gc104M", 20_275, 4, 91_753 - 20_271, (7196, 3.211414, 9740, 2.607972)),
    ],
)
def test_real_dictionaries(data_dir, version, size, specials, mapped, medians):
    folder = data_dir / "dictionaries" / version
    vocabulary = original_dictionaries.read_original_vocabulary(folder)
    assert vocabulary.size == size
    assert len(vocabulary.special_tokens) == specials
    assert len(vocabulary.id_mapping) == mapped
    (token_file,) = folder.glob("token_dictionary*")
    (median_file,) = folder.glob("gene_median*")
    (name_file,) = folder.glob("gene_name_id*")
    tokens = pickle.loads(token_file.read_bytes())
    original_medians = pickle.loads(median_file.read_bytes())
    names = pickle.loads(name_file.read_bytes())
    assert {g: specials + i for i, g in enumerate(vocabulary.gene_ids.tolist())} == {
        gene: int(token) for gene, token in tokens.items() if not gene.startswith("<")
    }
    for gene, symbol, median in zip(
        vocabulary.gene_ids, vocabulary.symbols, vocabulary.medians, strict=True
    ):
        assert median == original_medians[gene]
        assert not symbol or names[symbol] == gene
    gata4, gata4_median, titin, titin_median = medians
    ids = ["ENSG00000136574", "ENSG00000155657"]
    assert vocabulary.tokens_of(ids).tolist() == [gata4, titin]
    symbols = vocabulary.symbols[np.array([gata4, titin]) - specials].tolist()
    assert symbols == ["GATA4", "TTN"]
    found = vocabulary.medians[np.array([gata4, titin]) - specials]
    np.testing.assert_allclose(found, [gata4_median, titin_median], atol=1e-6)


@pytest.mark.reference_data
def test_the_second_version_maps_symbols_and_the_vocabulary_survives_saving(data_dir, tmp_path):
    vocabulary = original_dictionaries.read_original_vocabulary(
        data_dir / "dictionaries" / "v2_gc104M"
    )
    assert vocabulary.tokens_of(["GATA4"]).tolist() == [7196]
    vocabulary.save(tmp_path / "vocabulary")
    assert GeneVocabulary.load(tmp_path / "vocabulary").hash == vocabulary.hash


def malicious_pickles(flag):
    """Pickles that would each create the file `flag` (or call something) if they were executed."""
    command = f"touch {flag}"
    inner = pickle.dumps(Calls(os.system, command))
    scalar, dtype = np.float64(1).__reduce__()[0], np.dtype
    module = b"numpy.core.multiarray"
    yield "posix.system", pickle.dumps({"<pad>": Calls(os.system, command)})
    yield "posix.system", pickle.dumps({"<pad>": Calls(os.system, command)}, protocol=0)
    yield "builtins.exec", pickle.dumps(Calls(exec, f"open({str(flag)!r}, 'w')"))
    yield "builtins.getattr", pickle.dumps(Calls(getattr, "", "join"))
    yield "numpy.loads", b"\x80\x04cnumpy\nloads\n(C" + bytes([len(inner)]) + inner + b"tR."
    yield "numpy.dtype.__class__", b"\x80\x04\x8c\x05numpy\x8c\x0fdtype.__class__\x93."
    yield "numpy.core.multiarray.", b"\x80\x04c" + module + b"\n_reconstruct\n."
    # Object arrays and object scalars of numpy carry a pickle of their own.
    yield "object", pickle.dumps(Calls(scalar, Calls(dtype, "O"), inner))
    yield "object", pickle.dumps(Calls(dtype, "O8"))
    # A type with fields, and one of absurd size.
    yield "fields", pickle.dumps(Calls(dtype, [("a", "i4")]))
    yield "size", pickle.dumps(Calls(dtype, "i4000000000"))
    # Leaving something behind on the stand-ins.
    yield "build", b"\x80\x04c" + module + b"\nscalar\nN}\x8c\x08__call__\x8c\x01xs\x86b."
    yield "build", b"\x80\x04cnumpy\ndtype\nN}\x8c\x08__init__\x8c\x01xs\x86b."
    yield "extension code", b"\x80\x04\x82\x01."
    yield "persistent id", b"\x80\x04P1\n."


def test_nothing_in_a_pickle_is_executed(tmp_path):
    flag = tmp_path / "executed"
    path = tmp_path / "token_dictionary.pkl"
    for name, content in malicious_pickles(flag):
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            original_dictionaries.read_dictionary(path)
        assert not flag.exists(), name
        message = str(caught.value)
        assert "\n" not in message and str(path) in message
        if "." in name:
            assert name in message, message
    # The dangerous ones are dangerous: plain pickle runs the first.
    pickle.loads(pickle.dumps({"<pad>": Calls(os.system, f"touch {flag}")}))
    assert flag.exists()


def test_the_stand_ins_are_unchanged_after_an_attack(tmp_path):
    path = tmp_path / "token_dictionary.pkl"
    for _, content in malicious_pickles(tmp_path / "executed"):
        path.write_bytes(content)
        with pytest.raises(InputError):
            original_dictionaries.read_dictionary(path)
    content = {"a": np.float64(0.1), "b": np.int16(-3), "c": 7, "d": np.dtype(">f4").type(0.5)}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(content, protocol=protocol))
        if protocol < 3:
            # Old protocols spell bytes as a call of codecs.encode, which is refused like any other.
            with pytest.raises(InputError, match=r"_codecs\.encode"):
                original_dictionaries.read_dictionary(path)
            continue
        found = original_dictionaries.read_dictionary(path)
        assert found == {"a": 0.1, "b": -3, "c": 7, "d": 0.5}
        assert {type(value) for value in found.values()} == {int, float}


def test_mutated_dictionaries_give_a_dictionary_or_one_line(tmp_path):
    whole = pickle.dumps(small_dictionaries()["median"], protocol=4)
    path = tmp_path / "gene_median_dictionary.pkl"
    rng = random.Random(7)
    refused = 0
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        if rng.random() < 0.2:
            content = content[: rng.randrange(len(content))]
        path.write_bytes(bytes(content))
        try:
            found = original_dictionaries.read_dictionary(path)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert all(type(value) in (str, int, float) for value in found.values())
    assert refused > 100


def broken(kind, change):
    content = small_dictionaries()
    change(content[kind])
    return content


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (broken("token", lambda d: d.update({"<cls>": 9})), "special tokens"),
        (
            broken("token", lambda d: d.update({"ENSG00000000419": 7})),
            "ENSG00000000419 the token 7",
        ),
        (broken("token", lambda d: d.update({"ENSG00000000419": "4"})), "whole number"),
        (broken("token", lambda d: [d.pop(gene) for gene in GENES]), "no genes"),
        (broken("median", lambda d: d.pop("ENSG00000000005")), "no median for ENSG00000000005"),
        (broken("median", lambda d: d.update({"ENSG00000000005": 0.0})), "median 0.0"),
        (broken("median", lambda d: d.update({"ENSG00000000005": float("nan")})), "median nan"),
        (broken("mapping", lambda d: d.update({"X": 3})), '"X" to 3'),
        (broken("names", lambda d: d.clear()), "no dictionary with entries"),
        (broken("names", lambda d: d.update({5: "ENSG"})), "int to str"),
    ],
)
def test_dictionaries_that_do_not_fit_are_refused_in_one_line(tmp_path, content, words):
    folder = write_dictionaries(tmp_path / "gc", content)
    with pytest.raises(InputError, match=words) as caught:
        original_dictionaries.read_original_vocabulary(folder)
    assert "\n" not in str(caught.value)


def test_missing_and_ambiguous_files_are_named(tmp_path):
    folder = tmp_path / "gc"
    folder.mkdir()
    with pytest.raises(InputError, match=r"no \*token_dictionary\*\.pkl"):
        original_dictionaries.read_original_vocabulary(folder)
    write_dictionaries(folder, small_dictionaries())
    (folder / "token_dictionary_gc104M.pkl").write_bytes(b"")
    with pytest.raises(InputError, match=r"several .*gc104M\.pkl, token_dictionary_gc30M\.pkl"):
        original_dictionaries.read_original_vocabulary(folder)
    with pytest.raises(InputError, match="no file"):
        original_dictionaries.read_dictionary(folder / "absent.pkl")


@pytest.mark.parametrize("named", ["folder", "token dictionary"])
def test_dictionaries_are_taken_as_a_vocabulary(tmp_path, named):
    folder = write_dictionaries(tmp_path / "gc", small_dictionaries())
    expected = original_dictionaries.read_original_vocabulary(folder)
    path = folder
    if named == "token dictionary":
        path = folder / FILES["token"]
        # Those of another version lie beside: names that end alike belong together.
        for name in FILES.values():
            (folder / name.replace("gc30M", "gc104M")).write_bytes(b"another")
    assert original_dictionaries.read_vocabulary(path).hash == expected.hash


def test_no_pickle_is_written(tmp_path):
    error = str(original_dictionaries.unwritable_dictionaries(tmp_path / "gc"))
    assert str(tmp_path / "gc") in error and "--target=NAME.dataset" in error


def test_large_index_in_a_small_file_does_not_exhaust_memory(tmp_path):
    path = tmp_path / "token_dictionary.pkl"
    path.write_bytes(b"\x80\x04}r" + struct.pack("<I", 2**31) + b".")
    with pytest.raises(InputError, match="memo index"):
        original_dictionaries.read_dictionary(path)


@pytest.mark.parametrize("ending", ["json", "tsv", "csv"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_classes_of_genes_become_a_table_that_commands_read(tmp_path, ending, protocol):
    classes = {
        "Dosage-sensitive TFs": ["ENSG00000008197", "ENSG00000008441", "ENSG00000008197"],
        "Dosage-insensitive, others": ("ENSG00000010539",),
    }
    source, target = tmp_path / "dosage.pickle", tmp_path / f"dosage.{ending}"
    source.write_bytes(pickle.dumps(classes, protocol=protocol))
    Conversion(source, target).run()
    assert read_gene_lists(str(target)) == {
        name: list(dict.fromkeys(genes)) for name, genes in classes.items()
    }
    assert (tmp_path / "dosage.provenance.json").is_file()
    with pytest.raises(InputError, match="exists and nothing is overwritten"):
        Conversion(source, target).run()


def test_other_pickles_are_no_classes_of_genes(tmp_path):
    path = tmp_path / "classes.pkl"
    contents = ({}, {"a": "ENSG1"}, {"a": []}, {"a": [1]}, ["ENSG1"], {"ENSG1": 2})
    for content in contents:
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(InputError, match="holds no dictionary of the form"):
            gene_classes.read_gene_classes(path)
    flag = tmp_path / "executed"
    for name, content in malicious_pickles(flag):
        path.write_bytes(content)
        with pytest.raises(InputError):
            gene_classes.read_gene_classes(path)
        assert not flag.exists(), name


def test_a_token_dictionary_by_its_name_becomes_a_vocabulary(tmp_path):
    folder = write_dictionaries(tmp_path / "gc", small_dictionaries())
    Conversion(folder / FILES["token"], tmp_path / "vocabulary").run()
    expected = original_dictionaries.read_original_vocabulary(folder)
    assert GeneVocabulary.load(tmp_path / "vocabulary").hash == expected.hash
