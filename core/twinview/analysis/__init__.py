"""What is done with a trained run: score it, export it, draw from it, load it."""
