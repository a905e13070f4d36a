"""Random changes to training examples, drawn from one generator an example: a pure function of (seed, epoch, example)."""
