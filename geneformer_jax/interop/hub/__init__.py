"""The Hugging Face hub: models fetched from it by name, and put there with a card."""
