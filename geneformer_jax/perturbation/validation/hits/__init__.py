"""Statistics of perturbations beside the list of hits of a screen."""
