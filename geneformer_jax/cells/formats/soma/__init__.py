"""TileDB-SOMA: experiments, and collections of them as CELLxGENE Census is one."""
