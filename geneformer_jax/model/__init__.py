"""The BERT encoder over rank value encodings, its heads and its pretrained weights."""
