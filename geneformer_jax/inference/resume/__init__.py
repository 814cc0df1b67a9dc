"""Parts of unfinished outputs: how the same command goes on, alone or shared."""
