"""`gf.pp`, `gf.tl` and `gf.pl`: the functions of this package as scanpy writes its own."""
