"""Classification tasks: labels, splits, baselines, controls, metrics, report."""
