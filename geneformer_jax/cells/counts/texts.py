"""Texts of a table (ids of cells, names of genes) from whatever type a file keeps them in."""

import numpy as np
import pandas as pd


def as_text(values: object) -> np.ndarray:
    """[n] str (dtype object) of texts, bytes, numbers or categories; '' where missing.

    Raises:
      ValueError: they are not one text each.
    """
    values = np.asarray(values, dtype=object)
    if values.ndim != 1:
        raise ValueError(f"names have the shape {values.shape}, but each is one text")
    if pd.api.types.infer_dtype(values, skipna=False) == "string":
        return values
    series = pd.Series(values)
    missing = series.isna().to_numpy()
    texts = [v.decode() if isinstance(v, bytes) else str(v) for v in series]
    result = np.array(texts, dtype=object)
    result[missing] = ""
    return result


def as_packed_text(values: object) -> np.ndarray:
    """[n] str (numpy's StringDType), '' where missing; for cells, of which there are many."""
    if isinstance(values, np.ndarray) and isinstance(values.dtype, np.dtypes.StringDType):
        return values
    return as_text(values).astype(np.dtypes.StringDType())


def as_fixed_text(values: object) -> np.ndarray:
    """[n] str (dtype U), '' where missing; for genes, of which there are few."""
    if isinstance(values, np.ndarray) and isinstance(values.dtype, np.dtypes.StringDType):
        return values.astype(f"U{max(int(np.strings.str_len(values).max(initial=0)), 1)}")
    return as_text(values).astype(str)


def has_texts(values: pd.Series) -> bool:
    """Whether a column of a table holds texts, maybe with missing ones or as categories."""
    kind = values.dtype
    if isinstance(kind, pd.CategoricalDtype):
        kind = kind.categories.dtype
    return pd.api.types.is_string_dtype(kind) or pd.api.types.is_object_dtype(kind)
