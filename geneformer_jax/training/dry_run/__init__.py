"""What a pretraining run would do and cost, found out without running it."""
