"""Diffusion-LM (Li et al., 2022): a continuous diffusion over the word embeddings of a sentence."""
