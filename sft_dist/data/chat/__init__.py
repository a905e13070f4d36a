"""Conversations: turns, the shapes of rows they come in, and their tokens with a mark on those the model is to learn."""
