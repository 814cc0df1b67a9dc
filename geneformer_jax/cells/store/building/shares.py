"""What processes that share a build tell each other, and which pieces are still missing."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from geneformer_jax.cells.store import layout
from geneformer_jax.cells.store import writer as store_writer
from geneformer_jax.cells.tokenization.piece_index import Piece, PieceIndex
from geneformer_jax.common.errors import InputError

_OF = "of-"


def note_shares(folder: Path, shares: int) -> None:
    """Writes down in a store how many shares it is made in, to name the missing ones later."""
    (folder / layout.SHARES).mkdir(exist_ok=True)
    (folder / layout.SHARES / f"{_OF}{shares}").touch()


def key_of(index: PieceIndex, piece: Piece) -> str:
    """Name of a piece's folder in the store."""
    source = index.sources[piece.source]
    return layout.piece_key(source.facts["key"], piece.first, piece.stop, source.cells)


def keys_of(index: PieceIndex, source: int) -> list[str]:
    """Names of the folders of all pieces of a source, in order."""
    return [key_of(index, piece) for piece in index.pieces_of(source)]


def require_all(folder: Path, index: PieceIndex, sources: Sequence[int]) -> None:
    """Raises InputError if a piece of one of these sources is not written yet."""
    done = store_writer.finished_sources(folder)
    pieces = [piece for source in sources for piece in index.pieces_of(source)]
    missing = [piece for piece in pieces if key_of(index, piece) not in done]
    if missing:
        path = index.sources[missing[0].source].path
        changed = any(_other_versions(folder, path, keys_of(index, missing[0].source)))
        since = f" ({path} has changed since others of its pieces were made)" if changed else ""
        raise InputError(
            f"{len(missing)} of {len(pieces)} pieces are not tokenised yet, the first is "
            f"{index.describe_piece(missing[0])}{since}; run "
            f"{_shard_with(folder, index, missing[0])}, then `finish` again"
        )


def _shard_with(folder: Path, index: PieceIndex, piece: Piece) -> str:
    noted = [int(path.name.removeprefix(_OF)) for path in (folder / layout.SHARES).glob(f"{_OF}*")]
    if len(noted) != 1 or noted == [1]:
        return "the `shard` that holds it"
    return f"`shard`={index.share_with(piece, noted[0])}/{noted[0]}"


def _other_versions(folder: Path, path: Path, keys: Sequence[str]) -> Iterator[str]:
    """Yields the pieces of a source that were made of other content of it."""
    known = {layout.source_of(key) for key in keys}
    for key in store_writer.finished_sources(folder):
        is_other = layout.source_of(key) not in known
        if is_other and store_writer.source_summary(folder, key)["path"] == str(path):
            yield key
