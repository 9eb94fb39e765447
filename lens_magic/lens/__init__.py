"""The lens: states captured while a model generates, projected onto the vocabulary afterwards."""
