"""What all commands are, together: names, completion, how to cite, a summary, Ctrl-C."""
