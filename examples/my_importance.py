"""A measure of importance of your own: a channel matters as much as the largest weight that writes it."""

from compress.pruning.importance import IMPORTANCES, Importance, written_weights


def largest(group):
    return sum(weights.abs().amax(1) for weights in written_weights(group))


IMPORTANCES["largest"] = Importance("The largest |w| that writes the channel.", largest)
