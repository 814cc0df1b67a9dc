"""What the weights of a pretraining run begin with."""
