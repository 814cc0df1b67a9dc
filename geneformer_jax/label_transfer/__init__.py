"""Labels of a reference carried over to other cells, by a model that is not trained for it."""
