#!/usr/bin/env bash
# hdf5plugin's Blosc filter kills Python on texts.
#
# Expected: AnnData's documentation compresses files with filters of hdf5plugin, which AnnData hands
# to every array it writes, names of cells and genes among them. Filters of HDF5 apply to texts of
# any length like to anything else (their heap is left as it is), as Zstandard, LZ4 and Blosc2 do.
# Seen: Blosc ends the process with a segmentation fault, in h5py 3.14 and 3.16 and in hdf5plugin
# 5.1 to 7.1. `adata.write_h5ad(path, compression=hdf5plugin.FILTERS["blosc"])` therefore leaves
# half a file and no message. Zstandard, from the same package, is safe.
#
# Installs the packages into a temporary folder; fails if what was seen is no longer so.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "h5py==3.16.0" "hdf5plugin==7.1.0" "numpy==2.4.6"
cat > "$folder/write.py" <<'PROGRAM'
import sys

import h5py
import hdf5plugin
import numpy as np

with h5py.File(sys.argv[1], "w") as file:
    texts = np.array(["AAACATACAACCAC-1", "AAACATTGAGCTAC-1"], object)
    options = {"chunks": (2,), "compression": hdf5plugin.FILTERS[sys.argv[2]]}
    file.create_dataset("names", data=texts, dtype=h5py.string_dtype(), **options)
PROGRAM
for filter in zstd lz4 blosc2; do
  "$folder/venv/bin/python" "$folder/write.py" "$folder/$filter.h5" "$filter"
  echo "$filter: written"
done
status=0
"$folder/venv/bin/python" "$folder/write.py" "$folder/blosc.h5" blosc || status=$?
if [ "$status" -ne 139 ]; then
  echo "blosc: exit status $status, but 139 (segmentation fault) was seen"
  exit 1
fi
echo "blosc: segmentation fault, as seen"
