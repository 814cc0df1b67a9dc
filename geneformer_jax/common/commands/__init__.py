"""What all commands are, together: their names, completion, how to cite, a summary for programs."""
