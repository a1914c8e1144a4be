"""Layers that several systems share: the Mamba-2 mixer, 8-bit linear layers, text columns and their words."""
