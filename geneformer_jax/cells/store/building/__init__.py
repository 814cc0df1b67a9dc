"""What a build of a cell store is made of: the survey, the pieces, the shares, the summary."""
