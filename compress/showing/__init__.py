"""Who watches a run: a person at a terminal, a program that reads lines, TensorBoard, Weights & Biases.

Each listens to the run's events, see `compress.events`; none changes what the run does.
"""
