"""Fine-tuning: a pretrained network learns labels of cells or genes, and predicts them."""
