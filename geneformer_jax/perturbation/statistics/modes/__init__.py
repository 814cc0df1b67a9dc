"""What each statistic of a perturbation reads, computes and draws."""
